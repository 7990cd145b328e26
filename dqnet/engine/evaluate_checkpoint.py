"""Evaluation of a checkpoint: model and data are rebuilt from the file alone."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from dqnet.config import EvalConfig
from dqnet.engine.curve import curve_lambdas, remove_other_curve, write_curve
from dqnet.engine.evaluate import evaluate
from dqnet.engine.evaluate_dynamic import alternatives, calibrate, check_request, set_budget
from dqnet.engine.evaluate_tables import print_controls, print_curve
from dqnet.engine.files import write_json
from dqnet.engine.logging import WandbLogger, check_logger
from dqnet.engine.samples import Thumbnails, write_samples
from dqnet.engine.tables import print_summary
from dqnet.engine.train import summarize
from dqnet.engine.trained import load_trained, output_folder
from dqnet.errors import unknown_name
from dqnet.report.runs import read_run

REPORTS = ("none", "html")


def evaluate_checkpoint(config: EvalConfig, console: Console | None = None) -> dict[str, Any]:
    """Writes ``eval.json`` and ``per_sample.csv`` and prints the table that training prints.

    Args:
        config: which checkpoint (a file, or a run folder, meaning its ``best.pt``), what to measure
            beyond its figures, and what to change about how it was trained: data folder, batch
            size, device.
        console: where tables are printed.

    Returns:
        The content of ``eval.json``.
    """
    console = console or Console()
    if config.report.name not in REPORTS:
        raise unknown_name("report.name", config.report.name, REPORTS)
    check_logger(config.logger)
    baselines = [Path(run) for run in config.report.baselines]
    for run_folder in baselines:  # not after minutes of evaluation
        read_run(run_folder)
    trained = load_trained(config.checkpoint, config, console)
    path, model, device, target = trained.path, trained.model, trained.device, trained.target
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
        "target_bits": trained.target_bits,
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
        points, results["controls"] = alternatives(
            model, evaluation, images, device, lambdas, config.controls, console
        )
    if remove_other_curve(folder, results):
        line = f"{folder}/curve.csv was of another evaluation: removed"
        console.print(line, markup=False, soft_wrap=True)
    write_json(folder / "eval.json", results)
    evaluation.write_csv(folder / "per_sample.csv")
    written = [folder / "eval.json", folder / "per_sample.csv"]
    # What is drawn is drawn from files, by parts that are not loaded unless they are asked for.
    if points is not None:
        from dqnet.report.page.curve import write_figure

        write_curve(folder / "curve.csv", points)
        written += [folder / "curve.csv", *write_figure(folder)]
    if with_report:
        from dqnet.report.page.html import write_report

        write_samples(folder / "samples.npz", evaluation, thumbnails, trained.splits.class_names)
        written += [folder / "samples.npz", write_report(folder, baselines)]
    if config.logger.name == "wandb":
        from dqnet.report.page.wandb import log_report

        # A run that was trained with W&B goes on as the same run.
        logger = WandbLogger(
            config.logger, asdict(trained.config), folder, trained.content["wandb_id"]
        )
        if with_report:
            log_report(logger.run, folder)
        logger.finish({"eval": results})
    print_summary(console, results)
    if points is not None:
        print_curve(console, points, results["budget_lambda"])
    if config.controls:
        print_controls(console, results["controls"])
    console.print(f"written: {', '.join(map(str, written))}", markup=False, soft_wrap=True)
    return results
