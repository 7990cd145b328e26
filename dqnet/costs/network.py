"""What images cost in a network, by any cost model.

What modules multiply that are neither convolutions nor fully connected layers nor products of
activations is not counted: weights that are mixed or generated on the way (timm's ``CondConv2d``),
recurrent layers.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor

from dqnet.costs.base import CostModel, find_cost
from dqnet.errors import UserError
from dqnet.formats import Precision
from dqnet.network import QuantizedModel
from dqnet.plan import LayerPlan

BIT_FLOPS = "bit_flops"


def cost(
    model: QuantizedModel,
    routing: Tensor,
    by: str | CostModel = BIT_FLOPS,
    full_precision: bool = False,
) -> Tensor:
    """What each image costs in the quantized layers.

    Args:
        model: a converted model.
        routing: ``[N, L, K]``, one-hot (or probabilities, for an expected cost).
        by: the cost model, by name or itself.
        full_precision: also count what is kept in full precision.

    Returns:
        float64 ``[N]``, exact for one-hot routings of integer costs; differentiable in
        ``routing``.

    Raises:
        UserError: for a routing of another shape, or an unknown cost model.
    """
    plan = model.plan  # once: it is checked against the modules
    table = _finite_table(plan.routed, model.precisions, find_cost(by), routing.device)
    if routing.dim() != 3 or routing.shape[1:] != table.shape:
        shape = f"[N, {table.shape[0]}, {table.shape[1]}]"
        raise UserError(f"the routing has shape {list(routing.shape)}, it must be {shape}")
    constant = static_cost(plan.layers, by)
    if full_precision:
        constant += full_precision_cost(plan.layers, by)
    return (routing.double() * table).sum((1, 2)) + constant


def bit_flops(model: QuantizedModel, routing: Tensor, full_precision: bool = False) -> Tensor:
    """:func:`cost` in Bit-FLOPs, with what is in full precision at 32 × 32 bits."""
    return cost(model, routing, BIT_FLOPS, full_precision)


def cost_table(model: QuantizedModel, by: str | CostModel = BIT_FLOPS) -> Tensor:
    """What routed layers cost: float64 ``[L, K]``, infinite where one lacks a candidate."""
    return _table(model.routed_layers, model.precisions, find_cost(by))


@lru_cache(maxsize=64)
def _table(
    layers: tuple[LayerPlan, ...], precisions: tuple[Precision, ...], by: CostModel
) -> Tensor:
    rows = [
        [by.layer(layer, own) if own in layer.precisions else torch.inf for own in precisions]
        for layer in layers
    ]
    # It is kept, so it must not depend on where it happens to be made first.
    with torch.inference_mode(False):
        table = torch.tensor(rows, dtype=torch.float64, device="cpu")
    return table.reshape(-1, len(precisions))


@lru_cache(maxsize=64)
def _finite_table(
    layers: tuple[LayerPlan, ...],
    precisions: tuple[Precision, ...],
    by: CostModel,
    device: torch.device,
) -> Tensor:
    """The table on a device, copied there once, with 0 for infinity.

    What a layer cannot run at is not chosen, and infinity times zero is not zero.
    """
    with torch.inference_mode(False):
        return _table(layers, precisions, by).nan_to_num(posinf=0).to(device)


def relative_costs(model: QuantizedModel, by: str | CostModel = BIT_FLOPS) -> Tensor:
    """The cost of each routed layer at each candidate over their mean: float64 ``[L, K]``.

    One constant divides them all, so a price λ means the same in every layer, and choosing by score
    − λ · relative cost maximises the sum of the scores at a given cost of the network.
    """
    table = cost_table(model, by)
    return table / table[table.isfinite()].mean()


def static_bit_flops(model: QuantizedModel, bits: float) -> float:
    """What the network costs with its quantized layers at ``bits`` (fractions allowed).

    It is the target of ``target_bits=bits``: bits² × the multiply-accumulates of the quantized
    layers, of which those that are pinned (``first_last=8``) stay as they are; what is in full
    precision is not counted.
    """
    fixed, macs = pinned_bit_flops(model.layers), following_macs(model.layers)
    return float(bits) ** 2 * macs + fixed


def full_precision_cost(layers: Iterable[LayerPlan], by: str | CostModel = BIT_FLOPS) -> float:
    """The cost of one image in what is kept in full precision."""
    model = find_cost(by)
    return sum(model.layer(layer, None) for layer in layers if layer.role == "full")


def static_cost(layers: Iterable[LayerPlan], by: str | CostModel = BIT_FLOPS) -> float:
    """The cost in the static layers, the same for every image."""
    model = find_cost(by)
    return sum(
        model.layer(layer, layer.precisions[0]) for layer in layers if layer.role == "static"
    )


def pinned_bit_flops(layers: Iterable[LayerPlan]) -> float:
    """Of one image in the layers that a target does not change."""
    return static_cost(layer for layer in layers if layer.pinned)


def following_macs(layers: Iterable[LayerPlan]) -> int:
    """Multiply-accumulates of one image in the quantized layers that are not pinned."""
    return sum(layer.macs for layer in layers if layer.role != "full" and not layer.pinned)


def width_of(model: QuantizedModel, cost: float) -> float:
    """The ``bits`` of which ``cost`` is the :func:`static_bit_flops`."""
    fixed, macs = pinned_bit_flops(model.layers), following_macs(model.layers)
    return ((cost - fixed) / macs) ** 0.5 if macs else 0.0


def reachable_bits(model: QuantizedModel) -> tuple[float, float]:
    """The cheapest and the most expensive routing, as widths: the range of ``target_bits``."""
    fixed, table = static_cost(model.layers), cost_table(model)
    low = table.amin(1).sum().item()
    high = table.nan_to_num(posinf=0).amax(1).sum().item()
    return width_of(model, fixed + low), width_of(model, fixed + high)


def check_target(model: QuantizedModel, bits: float, name: str = "target_bits") -> float:
    """What the static network of ``bits`` costs, in Bit-FLOPs; ``name`` is of the setting.

    Raises:
        UserError: if no routing costs that much or that little.
    """
    low, high = reachable_bits(model)
    # Half a unit of the last printed digit: a range that is printed may be typed in again.
    if not low - 5e-4 <= bits <= high + 5e-4:
        raise UserError(
            f"{name}={bits:g} cannot be reached: with widths {model.widths} "
            f"this network's targets go from {low:.3f} to {high:.3f} bits"
        )
    return static_bit_flops(model, bits)


def default_target_bits(model: QuantizedModel) -> float:
    """The target of a network that is given none: its middle width; if static, what it costs."""
    if not model.routed_layers:
        return reachable_bits(model)[0]
    return model.precisions[len(model.precisions) // 2].width
