"""The figures of a whole network: ``summary.json``, and ``eval.json`` too."""

from __future__ import annotations

from typing import Any

from torch import nn

from dqnet.costs.controller import controller_cost
from dqnet.formats import FULL_PRECISION_BITS
from dqnet.measurement import Evaluation
from dqnet.network import QuantizedModel
from dqnet.trace import trace_model
from dqnet.training.run_state import RunState


def summarize(
    evaluation: Evaluation,
    model: nn.Module,
    target: float | None,
    image_shape: tuple[int, int, int],
) -> dict[str, Any]:
    """The figures of ``summary.json`` and ``eval.json`` that follow from a model's evaluation."""
    figures = evaluation.metrics | {"target_bit_flops": target}
    if isinstance(model, QuantizedModel):
        cost = controller_cost(model)
        return figures | {
            "params": cost.backbone_params,
            "macs": cost.backbone_macs,
            "controller_params": cost.params,
            "controller_macs": cost.macs,
        }
    first = next(model.parameters())
    macs = sum(
        layer.macs for layer in trace_model(model, first.new_zeros(1, *image_shape)).layers.values()
    )
    return figures | {
        "params": sum(p.numel() for p in model.parameters()),
        "macs": macs,
        "bit_flops_total": FULL_PRECISION_BITS**2 * macs,
    }


def run_summary(run: RunState, evaluation: Evaluation) -> dict[str, Any]:
    """The content of ``summary.json``, from the evaluation of the test part."""
    objective = run.learner.objective
    image_shape = run.splits.image_shape
    return summarize(evaluation, run.learner.model, objective.target, image_shape) | {
        "target_bits": objective.target_bits,
        "epochs": run.config.trainer.epochs,
        "best_epoch": run.best["epoch"],
        "seconds": run.seconds,
        "seed": run.config.seed,
        "damaged_images": len(run.splits.damaged),
    }
