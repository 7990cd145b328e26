"""Evaluation of a checkpoint: model and data are rebuilt from the file alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from dqnet.config import EvalConfig
from dqnet.evaluation.curve import curve_lambdas, remove_other_curve, write_curve
from dqnet.evaluation.evaluate_dynamic import calibrate, check_request, other_routings, set_budget
from dqnet.evaluation.samples import write_samples
from dqnet.evaluation.thumbnails import Thumbnails, samples_of
from dqnet.evaluation.trained import Trained, load_trained, output_folder
from dqnet.measurement import evaluate
from dqnet.runtime.files import write_json
from dqnet.training.logging import check_logger
from dqnet.training.metrics import summarize
from dqnet.training.tables import print_line


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
    points: list[dict[str, float]] | None


def evaluate_checkpoint(config: EvalConfig, console: Console | None = None) -> Evaluated:
    """Writes ``eval.json``, ``per_sample.csv``, ``curve.csv``, and ``samples.npz`` for a report.

    Args:
        config: which checkpoint (a file, or a run folder, meaning its ``best.pt``), what to measure
            beyond its figures, and what to change about how it was trained: data folder, batch
            size, device.
        console: where progress is shown.
    """
    console = console or Console()
    check_logger(config.logger)
    trained = load_trained(config.checkpoint, config, console)
    path, model, device, target = (
        trained.path,
        trained.model,
        trained.device,
        trained.objective.target,
    )
    images, data = trained.held_out, trained.data
    check_request(model, config)
    folder = output_folder(config, path)
    calibration = None
    budget: dict[str, Any] = {"budget": None, "budget_lambda": 0.0}
    if config.budget is not None or config.curve:
        calibration = calibrate(model, data.calibration, device)
    if config.budget is not None:
        budget = set_budget(model, calibration, config.budget)
        budget["budget_calibration"]["split"] = "train" if data.val is None else "val"
    thumbnails = Thumbnails(trained.config.data.mean, trained.config.data.std)
    with_report = config.report.name != "none"
    batches = thumbnails.of(images) if with_report else images
    evaluation = evaluate(model, batches, device.images, device.autocast)
    epochs = trained.content["epoch"]
    results = summarize(evaluation, model, target, trained.splits.image_shape) | {
        "target_bits": trained.objective.target_bits,
        "checkpoint": str(path),
        "checkpoint_sha256": trained.sha256,
        # As in metrics.jsonl: the latest epoch that was done, from 0.
        "epoch": epochs - 1 if epochs else None,
        "split": config.split,
        "data_root": trained.data_root,
        "seed": trained.config.seed,
        "damaged_images": len(trained.splits.damaged),
        **budget,
        "controls": None,
    }
    points = None
    if config.curve or config.controls:
        lambdas = []
        if config.curve:
            lambdas = curve_lambdas(calibration, target, budget["budget_lambda"])
        points, results["controls"] = other_routings(
            model, evaluation, images, device, lambdas, config.controls, console
        )
    if remove_other_curve(folder, results):
        print_line(console, f"{folder}/curve.csv was of another evaluation: removed")
    write_json(folder / "eval.json", results)
    evaluation.write_csv(folder / "per_sample.csv")
    if points is not None:
        write_curve(folder / "curve.csv", points)
    if with_report:
        samples = samples_of(evaluation, thumbnails, trained.splits.class_names)
        write_samples(folder / "samples.npz", samples)
    return Evaluated(trained, folder, results, points)
