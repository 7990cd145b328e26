"""Evaluation of a cascade of two networks, or of one network at two budgets: ``cascade.json``."""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Console

from dqnet.config import EvalConfig
from dqnet.errors import UserError
from dqnet.evaluation.budget import spend
from dqnet.evaluation.cascade import Cascade, Reused, thresholds
from dqnet.evaluation.evaluate_dynamic import calibrate, check_request, set_budget
from dqnet.evaluation.tables import print_cascade
from dqnet.evaluation.trained import Trained, load_trained, output_folder
from dqnet.measurement import Evaluation, evaluate
from dqnet.network import QuantizedModel
from dqnet.runtime.files import write_json
from dqnet.training.tables import print_line


def evaluate_cascade(config: EvalConfig, console: Console | None = None) -> dict[str, Any]:
    """Writes ``cascade.json``, and nothing else, and prints its points.

    Args:
        config: ``checkpoint`` and ``budget`` are the first pass, ``cascade`` has the second one.
        console: where the table is printed.

    Returns:
        The content of ``cascade.json``.

    Raises:
        UserError: if something cannot be measured, or both passes are the same.
    """
    console = console or Console()
    asked = [name for name in ("curve", "controls") if getattr(config, name)]
    asked += ["report"] if config.report.name != "none" else []
    asked += ["logger"] if config.logger.name != "none" else []
    if asked:
        raise UserError(f"cascade is an evaluation of its own: start it without {asked[0]}")
    first = load_trained(config.checkpoint, config, console)
    second = first
    if config.cascade.checkpoint is not None:
        second = load_trained(config.cascade.checkpoint, config, console)
    same = first.sha256 == second.sha256
    if same and config.budget == config.cascade.budget:
        raise UserError(
            f"both passes of the cascade are {first.path} at one budget: give another network, "
            "cascade.checkpoint=runs/NAME, or a larger budget, cascade.budget=BITS"
        )
    for trained, budget in ((first, config.budget), (second, config.cascade.budget)):
        if not isinstance(trained.model, QuantizedModel):
            raise UserError(f"{trained.path} is in full precision: a cascade saves Bit-FLOPs")
        check_request(trained.model, EvalConfig(budget=budget))
    folder = output_folder(config, first.path)

    # The first pass last, so that its network is then at its budget, to be calibrated.
    second_pass, second_description = _measured(second, config.cascade.budget)
    first_pass, description = _measured(first, config.budget)
    classes = first.splits.class_names, second.splits.class_names
    if classes[0] != classes[1] or not torch.equal(first_pass.labels, second_pass.labels):
        raise UserError(f"{first.path} and {second.path} are measured on different images")
    calibration = evaluate(
        first.model, first.data.calibration, first.device.images, first.device.autocast
    )
    reused = Reused.within(first_pass.layers) if same else Reused()
    cascade = Cascade(first_pass, second_pass, reused)
    results = {
        "first": description,
        "second": second_description,
        "reused_bit_flops": reused.quantized,
        "split": config.split,
        "images": len(first_pass.labels),
        "data_root": first.data_root,
        "calibration": {
            "images": len(calibration.labels),
            "split": "train" if first.data.val is None else "val",
        },
        "points": [cascade.point(value) for value in thresholds(calibration.confidence)],
    }
    write_json(folder / "cascade.json", results)
    print_cascade(console, results)
    print_line(console, f"written: {folder / 'cascade.json'}")
    return results


def _measured(trained: Trained, bits: float | None) -> tuple[Evaluation, dict[str, Any]]:
    """One pass of all images, at a budget if there is one, and what ``cascade.json`` says of it."""
    model, device = trained.model, trained.device
    spend(model, 0.0)
    budget_lambda = 0.0
    if bits is not None:
        calibration = calibrate(model, trained.data.calibration, device)
        budget_lambda = set_budget(model, calibration, bits)["budget_lambda"]
    evaluation = evaluate(model, trained.held_out, device.images, device.autocast)
    names = ("top1", "loss", "bit_flops", "bit_flops_std", "bit_flops_total", "mean_width")
    return evaluation, {
        "checkpoint": str(trained.path),
        "checkpoint_sha256": trained.sha256,
        "quantizer": trained.config.quant.quantizer,
        "widths": list(model.widths),
        "target_bits": trained.objective.target_bits,
        "budget": bits,
        "budget_lambda": budget_lambda,
        **{name: evaluation.metrics[name] for name in names},
    }
