"""Quantized layers."""

from dqnet.layers.conv import QuantConv2d
from dqnet.layers.linear import QuantLinear

__all__ = ["QuantConv2d", "QuantLinear"]
