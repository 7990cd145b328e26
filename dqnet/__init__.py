"""Instance-aware dynamic quantization of convolutional networks (Liu et al., CVPR 2022)."""

from dqnet import layers, models, transforms
from dqnet.calibration import calibrate
from dqnet.cascade import Cascade
from dqnet.config import ControllerConfig
from dqnet.convert import quantize
from dqnet.costs import bit_flops, cost, static_bit_flops
from dqnet.errors import UserError
from dqnet.export.biases import round_biases
from dqnet.export.runtime import load_exported
from dqnet.export.write import Preprocessing, export_onnx
from dqnet.fold import fold_batch_norms
from dqnet.formats import Format, Precision
from dqnet.network import Output, QuantizedModel
from dqnet.plan import Plan
from dqnet.search import find_plan

__all__ = [
    "Cascade",
    "ControllerConfig",
    "Format",
    "Output",
    "Plan",
    "Precision",
    "Preprocessing",
    "QuantizedModel",
    "UserError",
    "bit_flops",
    "calibrate",
    "cost",
    "export_onnx",
    "find_plan",
    "fold_batch_norms",
    "layers",
    "load_exported",
    "models",
    "quantize",
    "round_biases",
    "static_bit_flops",
    "transforms",
]
