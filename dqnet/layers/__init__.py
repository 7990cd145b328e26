"""Quantized layers."""

from dqnet.layers.conv import QuantConv2d
from dqnet.layers.linear import QuantLinear
from dqnet.layers.quant_layer import QuantLayer, quantized_layers
from dqnet.layers.winograd import Winograd

__all__ = ["QuantConv2d", "QuantLayer", "QuantLinear", "Winograd", "quantized_layers"]
