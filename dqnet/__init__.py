"""Instance-aware dynamic quantization of convolutional networks (Liu et al., CVPR 2022)."""

from dqnet import layers, models
from dqnet.config import ControllerConfig
from dqnet.convert import quantize
from dqnet.cost import bit_flops, static_bit_flops
from dqnet.errors import UserError
from dqnet.network import Output, QuantizedModel

__all__ = [
    "ControllerConfig",
    "Output",
    "QuantizedModel",
    "UserError",
    "bit_flops",
    "layers",
    "models",
    "quantize",
    "static_bit_flops",
]
