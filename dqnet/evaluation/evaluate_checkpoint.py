"""Evaluation of a checkpoint: model and data are rebuilt from the file alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from dqnet.cascade import Cascade
from dqnet.config import EvalConfig
from dqnet.costs.energy import COLUMNS, Energy
from dqnet.costs.rows import write_rows
from dqnet.costs.sparsity import measure_sparsity
from dqnet.errors import UserError
from dqnet.evaluation.cascade import CascadeEvaluation
from dqnet.evaluation.cascade_figures import cascade_controls, cascade_curve, summarize_cascade
from dqnet.evaluation.controls import compare, control_routings, cost_at_top1, fixed_routing
from dqnet.evaluation.curve import (
    curve_lambdas,
    curve_points,
    curve_routings,
    remove_other_curve,
    write_curve,
)
from dqnet.evaluation.routings import evaluate_routings
from dqnet.evaluation.samples import write_samples
from dqnet.evaluation.thumbnails import Thumbnails, samples_of
from dqnet.evaluation.trained import Trained, load_trained, output_folder
from dqnet.measurement import Evaluation
from dqnet.network import QuantizedModel
from dqnet.runtime.files import write_json
from dqnet.training.logging import check_logger
from dqnet.training.metrics import summarize
from dqnet.training.search import ConsoleJournal
from dqnet.training.tables import print_line

Points = list[dict[str, float]]


@dataclass(frozen=True, eq=False)
class Evaluated:
    """An evaluation whose files are written.

    Attributes:
        trained: what was evaluated.
        folder: where ``eval.json``, ``per_sample.csv``, and what else was asked for, are.
        results: the content of ``eval.json``.
        points: the rows of ``curve.csv``; ``None`` if it was not asked for.
    """

    trained: Trained
    folder: Path
    results: dict[str, Any]
    points: Points | None


def evaluate_checkpoint(
    config: EvalConfig,
    console: Console | None = None,
    accept: Callable[[Trained], None] | None = None,
) -> Evaluated:
    """Writes ``eval.json``, ``per_sample.csv``, ``curve.csv``, and ``samples.npz`` for a report.

    Args:
        config: which checkpoint (a file, or a run folder, meaning its ``best.pt``), what to measure
            beyond its metrics, and what to change about how it was trained: data folder, batch
            size, device.
        console: where progress is shown.
        accept: is asked before anything is measured or written; raises what refuses the network.
    """
    console = console or Console()
    check_logger(config.logger)
    trained = load_trained(config.checkpoint, config, console)
    splits, target = trained.splits, trained.objective.target_bit_flops
    trained.check_request(config.curve, config.controls, config.budget)
    if config.sparsity and not isinstance(trained.model, QuantizedModel):
        what = "a cascade" if isinstance(trained.model, Cascade) else "in full precision"
        raise UserError(f"sparsity=true needs a quantized network: this one is {what}")
    if accept is not None:
        accept(trained)
    folder = output_folder(config, trained.path)
    calibration = trained.calibrate() if _needs_budgets(trained, config) else None
    budget: dict[str, Any] = {"budget": None, "budget_lambda": 0.0}
    if config.budget is not None:
        budget = calibration.spend(config.budget)
        budget["budget_calibration"]["split"] = trained.calibration_part
    thumbnails = Thumbnails(trained.config.data.mean, trained.config.data.std)
    with_report = config.report.name != "none"
    evaluation = trained.measure(
        thumbnails.of(trained.held_out) if with_report else trained.held_out, trained.held_out
    )
    is_cascade = isinstance(evaluation, CascadeEvaluation)
    epochs = trained.content["epoch"]
    if is_cascade:
        figures = summarize_cascade(evaluation, trained.model, trained.objective)
    else:
        figures = summarize(evaluation, trained.model, trained.objective, splits.image_shape)
    results = figures | {
        "checkpoint": str(trained.path),
        "checkpoint_sha256": trained.sha256,
        # As in metrics.jsonl: the latest epoch that was done, from 0.
        "epoch": epochs - 1 if epochs else None,
        "split": config.split,
        "data_root": trained.data_root,
        "seed": trained.config.seed,
        "damaged_images": len(splits.damaged),
        **budget,
    }
    if config.sparsity:
        results["costs"] |= _energy_without_zeros(trained, evaluation, folder)
    if is_cascade:
        points = cascade_curve(trained, evaluation) if config.curve else None
        results["controls"] = cascade_controls(evaluation) if config.controls else None
    else:
        lambdas: list[float] = []
        if config.curve:
            lambdas = curve_lambdas(calibration, target, budget["budget_lambda"])
        points, results["controls"] = _other_routings(
            trained, evaluation, lambdas, config.controls, console
        )
    if remove_other_curve(folder, results):
        print_line(console, f"{folder}/curve.csv was of another evaluation: removed")
    write_json(folder / "eval.json", results)
    evaluation.write_csv(folder / "per_sample.csv")
    if points is not None:
        write_curve(folder / "curve.csv", points)
    if with_report:
        samples = samples_of(evaluation, thumbnails, splits.class_names)
        write_samples(folder / "samples.npz", samples)
    return Evaluated(trained, folder, results, points)


def _needs_budgets(trained: Trained, config: EvalConfig) -> bool:
    return isinstance(trained.model, QuantizedModel) and (config.curve or config.budget is not None)


def _energy_without_zeros(
    trained: Trained, evaluation: Evaluation, folder: Path
) -> dict[str, float]:
    """Writes ``sparsity.csv``, of training images; returns what it makes of the energy."""
    batches = (trained.device.images(images) for images, _ in trained.data.observed)
    rows = measure_sparsity(trained.model, batches)
    write_rows(folder / "sparsity.csv", COLUMNS, rows)
    own = trained.objective.cost
    energy = replace(own if isinstance(own, Energy) else Energy(), sparsity=rows)
    return {"energy_without_zeros": evaluation.mean_cost(energy)}


def _other_routings(
    trained: Trained, own: Evaluation, lambdas: Sequence[float], controls: bool, console: Console
) -> tuple[Points | None, dict[str, Any] | None]:
    """Runs the images of ``own`` with other routings, in one pass and none twice.

    Returns:
        The rows of ``curve.csv``, at ``lambdas``, with shuffled routing if there are ``controls``;
        and the ``controls`` of ``eval.json``. ``None`` for what is not asked for.
    """
    model, device = trained.model, trained.device
    routings = curve_routings(model, own.scores, lambdas, controls) if lambdas else {}
    if controls:
        with device.autocast():
            best = fixed_routing(model, own, trained.searched(), ConsoleJournal(console))
        routings |= control_routings(own, best)
    if not routings:
        return None, None
    batches = track(
        trained.held_out,
        f"{sum(map(len, routings.values()))} routings of every image",
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    answers = evaluate_routings(model, batches, device.images, device.autocast, own, routings)
    points = curve_points(model, answers, lambdas) if lambdas else None
    compared = compare(own, answers) if controls else None
    if points and compared:
        compared["shuffled_bit_flops_at_own_top1"] = cost_at_top1(points, own.metrics["top1"])
    return points, compared
