"""From a network of several widths to a plan with one for every layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import nn

from dqnet.costs import CostModel, find_cost
from dqnet.costs.network import check_target, default_target_bits
from dqnet.errors import UserError
from dqnet.formats import Precision, ascending
from dqnet.layers import QuantLayer
from dqnet.network import QuantizedModel
from dqnet.plan import Plan
from dqnet.search.base import Batch, Journal, Problem, find_search
from dqnet.trace import evaluating


def find_plan(
    model: QuantizedModel,
    batches: Iterable[Batch],
    by: str = "sensitivity",
    target_bits: float | None = None,
    cost: str | CostModel = "bit_flops",
    *,
    journal: Journal | None = None,
    **options: Any,
) -> Plan:
    """Chooses one of its precisions for every routed layer; all else stays as the network's plan.

    The network is best converted with ``controller=ControllerConfig(kind="table")``, with which
    all layers are routed that can be, and ``width_affine=False``, with which it computes what the
    static network of the plan computes. It is left as it was.

    Args:
        model: a dynamic network whose quantizers are set (:func:`dqnet.calibrate`).
        batches: images ``[N, C, H, W]`` and labels ``[N]`` to choose by, on the model's device:
            of the training part, and best not those that it was trained or calibrated on.
        by: the search: ``sensitivity``, ``greedy``, ``table`` or ``optuna``.
        target_bits: the plan costs at most what the static network of that width does; ``None``:
            the middle width, with a search that keeps to a target.
        cost: the cost model of the target.
        journal: where the search notes how far it is.
        options: the search's own.

    Raises:
        UserError: if there is nothing to choose, no plan can meet the target, or something that
            the search needs is missing; the message says which.
    """
    if not isinstance(model, QuantizedModel) or not model.routed_layers:
        raise UserError(
            "a search chooses among the widths of a dynamic network, and this one has no layer "
            "with several: convert it with widths=(2, 3, 4)"
        )
    search, price = find_search(by, options), find_cost(cost)
    target = None
    if search.meets_target:
        bits = default_target_bits(model, price) if target_bits is None else target_bits
        target = check_target(model, bits, by=price)
    elif target_bits is not None:
        raise UserError(f"search {by!r} keeps to no cost: leave target_bits out")
    given = list(batches)
    if search.reads_images and not given:
        raise UserError(f"search {by!r} chooses by images: give at least one batch")
    if search.reads_images and not all(_is_ready(module) for module in model.modules()):
        raise UserError("quantizers have no ranges yet: run dqnet.calibrate first")
    problem = Problem(model, given, price, target, journal or Journal())
    with evaluating(model), torch.no_grad():
        return problem.plan(search(problem))


def all_pairs(plan: Plan) -> Plan:
    """A plan whose routed layers have every pair of their weight and input formats."""
    layers = (
        replace(layer, precisions=_pairs(layer.precisions)) if layer.role == "routed" else layer
        for layer in plan.layers
    )
    return replace(plan, layers=tuple(layers))


def _pairs(precisions: tuple[Precision, ...]) -> tuple[Precision, ...]:
    formats = {own.weight for own in precisions}, {own.input for own in precisions}
    ordered = (sorted(own, key=lambda f: (f.bits, str(f))) for own in formats)
    return ascending(Precision(*pair) for pair in product(*ordered))


def _is_ready(module: nn.Module) -> bool:
    if not isinstance(module, QuantLayer):
        return True
    return module.weight_quantizer.ready and module.input_quantizer.ready
