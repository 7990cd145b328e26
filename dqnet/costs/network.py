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
from dqnet.costs.static import BIT_FLOPS, StaticCosts, static_cost
from dqnet.errors import UserError
from dqnet.formats import Precision
from dqnet.network import QuantizedModel
from dqnet.plan import LayerPlan


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


def full_precision_cost(layers: Iterable[LayerPlan], by: str | CostModel = BIT_FLOPS) -> float:
    """The cost of one image in what is kept in full precision."""
    model = find_cost(by)
    return sum(model.layer(layer, None) for layer in layers if layer.role == "full")


def reachable_bits(model: QuantizedModel, by: str | CostModel = BIT_FLOPS) -> tuple[float, float]:
    """The cheapest and the most expensive routing, as widths: the range of ``target_bits``."""
    fixed, table = static_cost(model.layers, by), cost_table(model, by)
    low = table.amin(1).sum().item()
    high = table.nan_to_num(posinf=0).amax(1).sum().item()
    costs = StaticCosts(model, by)
    return costs.width(fixed + low), costs.width(fixed + high)


def check_target(
    model: QuantizedModel,
    bits: float,
    name: str = "target_bits",
    by: str | CostModel = BIT_FLOPS,
) -> float:
    """What the static network of ``bits`` costs; ``name`` is of the setting.

    Raises:
        UserError: if no routing costs that much or that little.
    """
    low, high = reachable_bits(model, by)
    # Half a unit of the last printed digit: a range that is printed may be typed in again.
    if not low - 5e-4 <= bits <= high + 5e-4:
        raise UserError(
            f"{name}={bits:g} cannot be reached: with widths {model.widths} "
            f"this network's targets go from {low:.3f} to {high:.3f} bits"
        )
    return StaticCosts(model, by).cost(bits)


def default_target_bits(model: QuantizedModel, by: str | CostModel = BIT_FLOPS) -> float:
    """The target of a network that is given none: its middle width; if static, what it costs."""
    if not model.routed_layers:
        return reachable_bits(model, by)[0]
    return model.precisions[len(model.precisions) // 2].width
