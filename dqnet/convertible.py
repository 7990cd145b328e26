"""What can be converted: a float network, and layers that have a quantized form."""

from __future__ import annotations

from torch import Tensor, nn

from dqnet.dataflow import PLAIN_LAYERS
from dqnet.errors import UserError
from dqnet.layers import QuantLayer
from dqnet.plan import Plan
from dqnet.rules import QUANTIZABLE, before_split
from dqnet.trace import Trace


def check_model(model: nn.Module, sample_input: Tensor) -> None:
    """Raises UserError for what is not a float model, or not a batch of images."""
    if not isinstance(model, nn.Module):
        raise UserError(f"the model is a {type(model).__name__}; it must be an nn.Module")
    if any(isinstance(module, QuantLayer) for module in model.modules()):
        raise UserError("the model is already converted; convert a float one")
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise UserError(f"convert what is in the {type(model).__name__}: its .module")
    if isinstance(model, QUANTIZABLE):
        raise UserError(
            "the model is a single layer; convert it with QuantConv2d.from_float (QuantLinear), or "
            "inside an nn.Sequential"
        )
    if not isinstance(sample_input, Tensor):
        kind = type(sample_input).__name__
        raise UserError(f"sample_input is a {kind}; give a tensor, e.g. torch.zeros(1, 3, 32, 32)")
    if sample_input.dim() != 4 or not sample_input.is_floating_point():
        raise UserError(
            f"sample_input must be images [N, C, H, W] of floating point, not {sample_input.dtype} "
            f"{list(sample_input.shape)}"
        )


def check_convertible(model: nn.Module, trace: Trace, plan: Plan, split: str | None) -> None:
    """Raises UserError for a layer that cannot run at what the plan says."""
    kept = [layer.name for layer in plan.layers if layer.role == "full"]
    for layer in plan.layers:
        if layer.role == "full":
            continue
        name = layer.name
        module = model.get_submodule(name) if name in trace.layers else None
        remedy = f"full_precision={[*kept, name]}"
        if not isinstance(module, QUANTIZABLE) or type(module) not in PLAIN_LAYERS:
            kind = "product of activations" if module is None else type(module).__name__
            raise UserError(
                f"layer {name!r} is a {kind}, which has no quantized form; "
                f"keep it as it is with {remedy}"
            )
        if "weight" not in module._parameters:
            raise UserError(
                f"layer {name!r} computes its weight (weight norm, pruning); make it a parameter "
                "first (remove_weight_norm, prune.remove), or keep the layer as it is with "
                f"{remedy}"
            )
        if layer.role == "routed" and before_split(trace.layers[name], trace, split):
            raise UserError(
                f"layer {name!r} runs before the split point {split!r}, where an image's widths "
                "are not known yet: give it one width, or choose an earlier shared_until"
            )
