"""One line of ``metrics.jsonl``, and the same as one line on the console."""

from __future__ import annotations

from typing import Any

from dqnet.measurement import Evaluation
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
