"""Evaluation of a checkpoint: model and data are rebuilt from the file alone."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from dqnet.config import EvalConfig
from dqnet.data import load_data, loaders
from dqnet.engine.build import build_model
from dqnet.engine.checkpoint import check_same_data, config_of, load_checkpoint
from dqnet.engine.curve import curve_lambdas, remove_other_curve, write_curve
from dqnet.engine.devices import Device
from dqnet.engine.evaluate import evaluate
from dqnet.engine.evaluate_dynamic import alternatives, calibrate, check_request, set_budget
from dqnet.engine.evaluate_tables import print_controls, print_curve
from dqnet.engine.files import write_json
from dqnet.engine.logging import WandbLogger, check_logger
from dqnet.engine.objective import Objective
from dqnet.engine.samples import Thumbnails, write_samples
from dqnet.engine.tables import print_damaged, print_summary
from dqnet.engine.train import summarize
from dqnet.engine.weights import load_own_weights
from dqnet.errors import UserError, unknown_name
from dqnet.processes import launched
from dqnet.report.runs import read_run

SPLITS = ("test", "val")
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
    if launched() > 1:
        raise UserError("eval.py is one process: start it with python, not torchrun")
    if config.checkpoint is None:
        raise UserError("name a checkpoint: python eval.py checkpoint=runs/NAME/best.pt")
    if config.split not in SPLITS:
        raise unknown_name("split", config.split, SPLITS)
    if config.report.name not in REPORTS:
        raise unknown_name("report.name", config.report.name, REPORTS)
    check_logger(config.logger)
    baselines = [Path(run) for run in config.report.baselines]
    for run_folder in baselines:  # not after minutes of evaluation
        read_run(run_folder)
    path = Path(config.checkpoint)
    path = path / "best.pt" if path.is_dir() else path
    content = load_checkpoint(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    run = config_of(content, path)
    for section in ("data", "trainer"):
        for key, value in vars(getattr(config, section)).items():
            if value is not None:
                setattr(getattr(run, section), key, value)

    device = Device(run.trainer)
    splits = load_data(run.data)
    print_damaged(console, splits.damaged)
    check_same_data(path, content, splits, run.data.root)
    data = loaders(splits, run.data, run.seed, device=device.torch_device)
    held_out = data.test if config.split == "test" else data.val
    if held_out is None:
        raise UserError("the run kept no validation part (data.val_fraction=0): use split=test")

    shape, classes = splits.image_shape, splits.num_classes
    model = build_model(run.model, run.quant, classes, shape, load_weights=False)
    load_own_weights(model, content, path)
    model = device.place(model)
    check_request(model, config)
    objective = Objective(model, run.loss)
    folder = Path(config.output) if config.output is not None else path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output folder {folder} cannot be made: {error.strerror}") from error
    calibration = None
    budget: dict[str, Any] = {"budget": None, "budget_lambda": 0.0}
    if config.budget is not None or config.curve:
        calibration = calibrate(model, data.calibration, device)
    if config.budget is not None:
        budget = set_budget(model, calibration, config.budget)
        budget["budget_calibration"]["split"] = "train" if data.val is None else "val"
    thumbnails = Thumbnails(run.data.mean, run.data.std)
    with_report = config.report.name != "none"
    batches = thumbnails.of(held_out) if with_report else held_out
    evaluation = evaluate(model, batches, device.images, device.autocast)
    results = summarize(evaluation, model, objective.target, shape) | {
        "target_bits": objective.target_bits,
        "checkpoint": str(path),
        "checkpoint_sha256": digest,
        # As in metrics.jsonl: the latest epoch that was done, from 0.
        "epoch": content["epoch"] - 1 if content["epoch"] else None,
        "split": config.split,
        "data_root": None if run.data.root is None else str(Path(run.data.root).absolute()),
        "seed": run.seed,
        "damaged_images": len(splits.damaged),
        **budget,
        "controls": None,
    }
    points = None
    if config.curve or config.controls:
        lambdas = []
        if config.curve:
            lambdas = curve_lambdas(calibration, objective.target, model.budget_lambda)
        points, results["controls"] = alternatives(
            model, evaluation, held_out, device, lambdas, config.controls, console
        )
    if remove_other_curve(folder, results):
        line = f"{folder}/curve.csv was of another evaluation: removed"
        console.print(line, markup=False, soft_wrap=True)
    write_json(folder / "eval.json", results)
    evaluation.write_csv(folder / "per_sample.csv")
    written = [folder / "eval.json", folder / "per_sample.csv"]
    # What is drawn is drawn from files, by parts that are not loaded unless they are asked for.
    if points is not None:
        from dqnet.report.curve import write_figure

        write_curve(folder / "curve.csv", points)
        written += [folder / "curve.csv", *write_figure(folder)]
    if with_report:
        from dqnet.report.html import write_report

        write_samples(folder / "samples.npz", evaluation, thumbnails, splits.class_names)
        written += [folder / "samples.npz", write_report(folder, baselines)]
    if config.logger.name == "wandb":
        from dqnet.report.wandb import log_report

        # A run that was trained with W&B goes on as the same run.
        logger = WandbLogger(config.logger, asdict(run), folder, content["wandb_id"])
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
