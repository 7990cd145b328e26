"""Evaluation of a cascade of two networks, or of one network at two budgets: ``cascade.json``."""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Console

from dqnet.config import EvalConfig
from dqnet.costs.static import static_cost
from dqnet.errors import UserError
from dqnet.evaluation.budget import spend
from dqnet.evaluation.cascade import before_routing, cascade_point, thresholds
from dqnet.evaluation.tables import print_cascade
from dqnet.evaluation.trained import Trained, load_trained, output_folder
from dqnet.measurement import Evaluation
from dqnet.network import QuantizedModel
from dqnet.runtime.files import write_json
from dqnet.training.tables import print_line


def evaluate_cascade(config: EvalConfig, console: Console | None = None) -> dict[str, Any]:
    """Writes ``cascade.json``, and nothing else, prints its points, and returns its content.

    The configuration's ``checkpoint`` and ``budget`` are the first pass, ``cascade`` the second.

    Raises:
        UserError: if something cannot be measured, or both passes are the same.
    """
    console = console or Console()
    others = {
        "curve": config.curve,
        "controls": config.controls,
        "report": config.report.name != "none",
        "logger": config.logger.name != "none",
    }
    for name, asked in others.items():
        if asked:
            raise UserError(f"cascade is an evaluation of its own: start it without {name}")
    first = second = load_trained(config.checkpoint, config, console)
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
        trained.check_request(curve=False, controls=False, budget=budget)
    folder = output_folder(config, first.path)

    # The first pass last, so that its network is then at its budget, to be calibrated.
    second_pass, second_description = _measured(second, config.cascade.budget)
    first_pass, description = _measured(first, config.budget)
    classes = first.splits.class_names, second.splits.class_names
    if classes[0] != classes[1] or not torch.equal(first_pass.labels, second_pass.labels):
        raise UserError(f"{first.path} and {second.path} are measured on different images")
    confidence = first.measure(first.data.calibration).confidence
    reused = before_routing(first_pass.layers) if same else ()
    results = {
        "first": description,
        "second": second_description,
        "reused_bit_flops": static_cost(reused),
        "split": config.split,
        "images": len(first_pass.labels),
        "data_root": first.data_root,
        "calibration": {"images": len(confidence), "split": first.calibration_part},
        "points": [
            cascade_point(first_pass, second_pass, threshold, reused)
            for threshold in thresholds(confidence)
        ],
    }
    write_json(folder / "cascade.json", results)
    print_cascade(console, results)
    print_line(console, f"written: {folder / 'cascade.json'}")
    return results


def _measured(trained: Trained, bits: float | None) -> tuple[Evaluation, dict[str, Any]]:
    """One pass of all images, at a budget if there is one, and what ``cascade.json`` says of it."""
    spend(trained.model, 0.0)
    budget_lambda = 0.0
    if bits is not None:
        budget_lambda = trained.calibrate().spend(bits)["budget_lambda"]
    evaluation = trained.measure(trained.held_out)
    names = ("top1", "loss", "bit_flops", "bit_flops_std", "bit_flops_total", "mean_width")
    return evaluation, {
        "checkpoint": str(trained.path),
        "checkpoint_sha256": trained.sha256,
        "quantizer": trained.config.quant.quantizer,
        "widths": list(trained.model.widths),
        "target_bits": trained.objective.target_bits,
        "budget": bits,
        "budget_lambda": budget_lambda,
        **{name: evaluation.metrics[name] for name in names},
    }
