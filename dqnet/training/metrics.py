"""The figures of a run: a line of ``metrics.jsonl`` and of the console, and ``summary.json``."""

from __future__ import annotations

from typing import Any

from torch import nn

from dqnet.costs.controller import controller_cost
from dqnet.costs.size import weight_bytes
from dqnet.formats import FULL_PRECISION_BITS
from dqnet.measurement import Evaluation
from dqnet.network import QuantizedModel
from dqnet.trace import trace_model
from dqnet.training.run_state import RunState

#: metrics of every epoch's validation in metrics.jsonl, as val_NAME
PER_EPOCH = ("top1", "top5", "loss", "bit_flops", "bit_flops_std", "distinct_routings")


def epoch_metrics(run: RunState, evaluation: Evaluation) -> dict[str, Any]:
    """What ``metrics.jsonl`` says of the epoch whose steps are done and which was evaluated."""
    return {
        "epoch": run.done,
        **{f"train_{name}": value for name, value in run.history.means().items()},
        **{f"val_{name}": evaluation.metrics[name] for name in PER_EPOCH},
        "mean_width": evaluation.metrics["mean_width"],
        "lr": run.learner.lr,
        "seconds": run.seconds,
    }


def epoch_line(metrics: dict[str, Any], epochs: int, target: float | None) -> str:
    """The most important of them; ``target`` is in Bit-FLOPs."""
    line = (
        f"epoch {metrics['epoch'] + 1:>3}/{epochs}  train loss {metrics['train_loss']:.4f}  "
        f"val top-1 {metrics['val_top1']:6.2f} %"
    )
    if "train_penalty" in metrics:
        line += (
            f"  Bit-FLOPs {metrics['val_bit_flops'] / target:.3f} of target"
            f" ± {metrics['val_bit_flops_std'] / target:.3f}"
            f"  {metrics['val_distinct_routings']} routings"
        )
    return f"{line}  {metrics['seconds']:.0f} s"


def summarize(
    evaluation: Evaluation,
    model: nn.Module,
    target: float | None,
    image_shape: tuple[int, int, int],
) -> dict[str, Any]:
    """The figures of ``summary.json`` and ``eval.json`` that follow from a model's evaluation."""
    figures = evaluation.metrics | {"target_bit_flops": target, "weight_bytes": weight_bytes(model)}
    if isinstance(model, QuantizedModel):
        cost = controller_cost(model)
        return figures | {
            "params": cost.backbone_params,
            "macs": cost.backbone_macs,
            "controller_params": cost.params,
            "controller_macs": cost.macs,
        }
    image = next(model.parameters()).new_zeros(1, *image_shape)
    macs = sum(layer.macs for layer in trace_model(model, image).layers.values())
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
