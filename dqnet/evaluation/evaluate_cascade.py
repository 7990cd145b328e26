"""Cascades of one or two networks at every threshold: ``cascade.json``, and perhaps a network."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from torch import nn

from dqnet.cascade import Cascade, check_settings
from dqnet.config import EvalConfig
from dqnet.costs.static import static_cost
from dqnet.errors import UserError
from dqnet.evaluation.budget import spend
from dqnet.evaluation.cascade import (
    SHARES,
    Batches,
    Viewed,
    before_routing,
    both_answers,
    cascade_evaluation,
    cascade_point,
    evaluate_passes,
    is_unsure,
)
from dqnet.evaluation.cascade_file import write_cascade
from dqnet.evaluation.samples import NOT_RUN
from dqnet.evaluation.tables import print_cascade
from dqnet.evaluation.trained import Trained, load_trained, output_folder
from dqnet.measurement import Evaluation
from dqnet.network import QuantizedModel
from dqnet.plan import LayerPlan
from dqnet.runtime.files import write_json
from dqnet.training.tables import print_line

#: the folder of a cascade that is saved, in that of its first pass
SAVED_IN = "cascade"


@dataclass(frozen=True)
class Pass:
    """One of the two passes.

    Attributes:
        trained: whose network runs.
        model: that network, at its budget.
        budget: as a width; ``None``: as it was trained.
        budget_lambda: what it comes to.
    """

    trained: Trained
    model: nn.Module
    budget: float | None
    budget_lambda: float

    def describe(self, evaluation: Evaluation) -> dict[str, Any]:
        """What ``cascade.json`` says of it, having been evaluated alone."""
        names = ("top1", "loss", "bit_flops", "bit_flops_std", "bit_flops_total", "mean_width")
        trained = self.trained
        return {
            "checkpoint": str(trained.path),
            "checkpoint_sha256": trained.sha256,
            "quantizer": trained.config.quant.quantizer,
            "widths": self._widths(evaluation),
            "target_bits": trained.objective.target_bits,
            "budget": self.budget,
            "budget_lambda": self.budget_lambda,
            **{name: evaluation.metrics[name] for name in names},
        }

    def _widths(self, evaluation: Evaluation) -> list[int | str]:
        """The candidates, without those of layers that have a precision of their own."""
        quant = self.trained.config.quant
        if quant.plan is None and not isinstance(self.model, Cascade):
            return list(quant.widths)
        return [width for width in evaluation.widths if width != NOT_RUN]

    def content(self) -> dict[str, Any]:
        """Of the checkpoint."""
        return self.trained.content | {"budget_lambda": self.budget_lambda}


def evaluate_cascade(config: EvalConfig, console: Console | None = None) -> dict[str, Any]:
    """Writes ``cascade.json``, prints its points, and returns its content.

    The configuration's ``checkpoint`` and ``budget`` are the first pass, ``cascade`` the second.
    With ``cascade.share`` the cascade in which so many held-out images run twice is written to
    ``cascade/best.pt``, to be evaluated like any network.

    Raises:
        UserError: if something cannot be measured, or both passes are the same.
    """
    console = console or Console()
    wanted = config.cascade
    _check(config)
    first = second = load_trained(config.checkpoint, config, console)
    if wanted.checkpoint is not None:
        second = load_trained(wanted.checkpoint, config, console, like=first)
    same = first.sha256 == second.sha256
    if same and config.budget == wanted.budget and wanted.view is None:
        raise UserError(
            f"both passes of the cascade are {first.path} at one budget: give another network, "
            "cascade.checkpoint=runs/NAME, another view, cascade.view=mirror, or a larger budget, "
            "cascade.budget=BITS"
        )
    for trained, budget in ((first, config.budget), (second, wanted.budget)):
        if not isinstance(trained.model, QuantizedModel | Cascade):
            raise UserError(f"{trained.path} is in full precision: a cascade saves Bit-FLOPs")
        trained.check_request(curve=False, controls=False, budget=budget)
    # What both budgets have in common is computed once, if both see the same.
    once_for_both = same and wanted.view is None
    if once_for_both and wanted.share is not None:
        raise UserError(
            "cascade.share saves a cascade of two networks or two views: one network at two "
            "budgets stays one network"
        )
    folder = output_folder(config, first.path)
    passes = _passes(first, second, config, same)
    cascade = Cascade(
        passes[0].model,
        None if passes[1].model is passes[0].model else passes[1].model,
        view=wanted.view,
        combine=wanted.combine,
    )
    measured = _both(cascade, first, second, first.held_out, second.held_out)
    classes = first.splits.class_names, second.splits.class_names
    if classes[0] != classes[1] or not torch.equal(measured[0].labels, measured[1].labels):
        raise UserError(f"{first.path} and {second.path} are measured on different images")
    if second.data is not first.data:
        print_line(
            console,
            f"warning: {second.path} was trained with other data settings, so that it may have "
            "seen the images that this cascade is fitted on",
        )
    calibration = first.data.calibration
    held_out = _both(cascade, first, second, calibration, calibration)
    reused = before_routing(measured[0].layers) if once_for_both else ()
    results = {
        "first": passes[0].describe(measured[0]),
        "second": passes[1].describe(measured[1]),
        "view": wanted.view,
        "combine": wanted.combine,
        "reused_bit_flops": static_cost(reused),
        "split": config.split,
        "images": len(measured[0].labels),
        "data_root": first.data_root,
        "calibration": {"images": len(held_out[0].labels), "split": first.calibration_part},
        "points": _points(cascade, held_out, measured, reused),
    }
    written = [folder / "cascade.json"]
    if wanted.share is not None:
        _fit(cascade, held_out, wanted.share)
        written.append(folder / SAVED_IN / "best.pt")
        written[-1].parent.mkdir(exist_ok=True)
        looks_again = cascade.second is None
        write_cascade(
            written[-1], cascade, passes[0].content(), None if looks_again else passes[1].content()
        )
    write_json(folder / "cascade.json", results)
    print_cascade(console, results)
    print_line(console, f"written: {', '.join(map(str, written))}")
    return results


def _check(config: EvalConfig) -> None:
    """Refuses what can be refused before anything is loaded."""
    others = {
        "curve": config.curve,
        "controls": config.controls,
        "sparsity": config.sparsity,
        "report": config.report.name != "none",
        "export": config.export.name != "none",
        "logger": config.logger.name != "none",
    }
    for name, asked in others.items():
        if asked:
            raise UserError(
                f"cascade is an evaluation of its own: start it without {name}, or save a cascade "
                f"with cascade.share and evaluate that, checkpoint=RUN/{SAVED_IN}"
            )
    wanted = config.cascade
    check_settings(wanted.view, wanted.combine, wanted.share, prefix="cascade.")


def _passes(first: Trained, second: Trained, config: EvalConfig, same: bool) -> tuple[Pass, Pass]:
    """Each network at its budget; one network at two budgets becomes two."""
    wanted = (first, config.budget), (second, config.cascade.budget)
    lambdas = [
        0.0 if budget is None else trained.calibrate().spend(budget)["budget_lambda"]
        for trained, budget in wanted
    ]
    models = [first.model, second.model]
    if same and config.budget != config.cascade.budget:
        models[1] = deepcopy(first.model)
    for model, budget_lambda in zip(models, lambdas, strict=True):
        if isinstance(model, QuantizedModel):
            spend(model, budget_lambda)
    one, two = (
        Pass(trained, model, budget, budget_lambda)
        for (trained, budget), model, budget_lambda in zip(wanted, models, lambdas, strict=True)
    )
    return one, two


def _both(
    cascade: Cascade, first: Trained, second: Trained, batches: Batches, again: Batches
) -> tuple[Evaluation, Evaluation]:
    """Both passes, each of all images."""
    own = evaluate_passes(cascade.first, batches, batches, *first.how)
    view = Viewed(again, cascade.view)
    return own, evaluate_passes(cascade.second_network, view, view, *second.how)


def _fit(cascade: Cascade, held_out: tuple[Evaluation, Evaluation], share: float) -> None:
    first, second = held_out
    cascade.fit_answers(first.logits, second.logits, first.labels, share)


def _points(
    cascade: Cascade,
    held_out: tuple[Evaluation, Evaluation],
    measured: tuple[Evaluation, Evaluation],
    reused: tuple[LayerPlan, ...],
) -> list[dict[str, Any]]:
    """One for each threshold, fitted on ``held_out``, of ``measured``."""
    points: dict[float, dict[str, Any]] = {}
    for share in SHARES:
        _fit(cascade, held_out, share)
        threshold = cascade.threshold.item()
        if threshold in points:
            continue
        once, twice = both_answers(cascade, *measured)
        again = is_unsure(threshold, once)
        points[threshold] = {
            "threshold": threshold,
            "temperatures": cascade.temperatures.tolist(),
            "weight": cascade.weight.item(),
            **cascade_point(cascade_evaluation(once, twice, again, reused)),
        }
    return [points[threshold] for threshold in sorted(points)]
