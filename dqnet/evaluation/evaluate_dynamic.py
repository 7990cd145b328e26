"""What only a dynamic network can be asked: other budgets and other routings of the same images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import nn

from dqnet.config import EvalConfig
from dqnet.costs.network import check_target
from dqnet.data import Loader
from dqnet.errors import UserError
from dqnet.evaluation.budget import Calibration, spend
from dqnet.evaluation.controls import SEEDS, Key, compare, control_routings, cost_at_top1
from dqnet.evaluation.curve import curve_points, curve_routings
from dqnet.evaluation.evaluate_routings import evaluate_routings
from dqnet.measurement import Evaluation, evaluate
from dqnet.network import QuantizedModel
from dqnet.runtime.devices import Device


def check_request(model: nn.Module, config: EvalConfig) -> None:
    """Refuses early what cannot be measured.

    Raises:
        UserError: if something that needs a choice of widths is asked of a network without one, or
            a budget is out of its reach.
    """
    names = [name for name in ("curve", "controls") if getattr(config, name)]
    names += ["budget"] if config.budget is not None else []
    if names and not (isinstance(model, QuantizedModel) and model.controller is not None):
        what = "every layer of this one has a single width"
        if not isinstance(model, QuantizedModel):
            what = "this one is in full precision"
        verb = "needs" if len(names) == 1 else "need"
        raise UserError(f"{' and '.join(names)} {verb} a dynamic network: {what}")
    if config.budget is not None:
        check_target(model, config.budget, "budget")


def calibrate(model: QuantizedModel, images: Loader, device: Device) -> Calibration:
    """One pass over the images that a budget's λ is found on; never the test part."""
    return Calibration(model, evaluate(model, images, device.images, device.autocast).scores)


def set_budget(model: QuantizedModel, calibration: Calibration, bits: float) -> dict[str, Any]:
    """Makes the model spend ``bits`` on the mean image; returns what ``eval.json`` says of it."""
    budget = check_target(model, bits, "budget")
    budget_lambda = calibration.lambda_for(budget)
    spend(model, budget_lambda)
    return {
        "budget": bits,
        "budget_bit_flops": budget,
        "budget_lambda": budget_lambda,
        "budget_calibration": {
            "images": len(calibration.scores),
            "bit_flops": calibration.bit_flops(budget_lambda),
        },
    }


def other_routings(
    model: QuantizedModel,
    own: Evaluation,
    images: Loader,
    device: Device,
    lambdas: Sequence[float],
    controls: bool,
    console: Console,
) -> tuple[list[dict[str, float]] | None, dict[str, Any] | None]:
    """Runs the evaluated images with other routings, in one pass and none twice.

    Args:
        model: a dynamic network, at the budget of ``own``.
        own: its evaluation.
        images: the images of ``own``.
        device: where to.
        lambdas: those of :func:`dqnet.evaluation.curve.curve_lambdas`; empty: no curve.
        controls: whether to run those, and the curve of shuffled routing.
        console: where progress is shown.

    Returns:
        The rows of ``curve.csv`` and the ``controls`` of ``eval.json``; ``None`` if not asked for.
    """
    seeds = SEEDS if controls else ()
    routings: dict[Key, torch.Tensor] = curve_routings(model, own.scores, lambdas, seeds)
    if controls:
        routings |= control_routings(own, seeds)
    batches = track(
        images,
        f"{len(routings)} routings of every image",
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    results = evaluate_routings(
        model, batches, device.images, device.autocast, own, torch.stack([*routings.values()])
    )
    answers = dict(zip(routings, results, strict=True))
    points = curve_points(model, answers, lambdas, seeds) if lambdas else None
    compared = compare(own, answers) if controls else None
    if compared is not None and points is not None:
        compared["shuffled_bit_flops_at_own_top1"] = cost_at_top1(points, compared["own"]["top1"])
    return points, compared
