"""The figures of a run: a line of ``metrics.jsonl`` and of the console, and ``summary.json``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from dqnet.costs.base import CostModel, all_costs
from dqnet.costs.controller import controller_cost
from dqnet.costs.network import full_precision_cost
from dqnet.costs.size import peak_activation_bytes, weight_bytes
from dqnet.costs.static import BIT_FLOPS
from dqnet.formats import FULL_PRECISION_BITS
from dqnet.measurement import Evaluation
from dqnet.network import QuantizedModel
from dqnet.plan import LayerPlan
from dqnet.pruning import weight_sparsity
from dqnet.rules import plan_of_trace
from dqnet.trace import trace_model
from dqnet.training.objective import Objective
from dqnet.training.run_state import RunState

#: metrics of every epoch's validation in metrics.jsonl, as val_NAME
PER_EPOCH = ("top1", "top5", "loss", "bit_flops", "bit_flops_std", "distinct_routings")


def epoch_metrics(run: RunState, evaluation: Evaluation) -> dict[str, Any]:
    """What ``metrics.jsonl`` says of the epoch whose steps are done and which was evaluated."""
    return {
        "epoch": run.done,
        **{f"train_{name}": value for name, value in run.history.means().items()},
        **{f"val_{name}": evaluation.metrics[name] for name in PER_EPOCH},
        "val_cost": evaluation.mean_cost(run.learner.objective.cost),
        "mean_width": evaluation.metrics["mean_width"],
        "lr": run.learner.lr,
        "seconds": run.seconds,
    }


def epoch_line(metrics: dict[str, Any], epochs: int, objective: Objective) -> str:
    """The most important of them."""
    line = (
        f"epoch {metrics['epoch'] + 1:>3}/{epochs}  train loss {metrics['train_loss']:.4f}  "
        f"val top-1 {metrics['val_top1']:6.2f} %"
    )
    if "train_penalty" in metrics:
        line += f"  {objective.title} {metrics['val_cost'] / objective.target:.3f} of target"
        if objective.config.cost == BIT_FLOPS:
            line += f" ± {metrics['val_bit_flops_std'] / objective.target:.3f}"
        line += f"  {metrics['val_distinct_routings']} routings"
    return f"{line}  {metrics['seconds']:.0f} s"


def summarize(
    evaluation: Evaluation,
    model: nn.Module,
    objective: Objective,
    image_shape: tuple[int, int, int],
) -> dict[str, Any]:
    """The figures of ``summary.json`` and ``eval.json`` that follow from a model's evaluation."""
    figures = evaluation.metrics | {
        "target_bits": objective.target_bits,
        "target_bit_flops": objective.target_bit_flops,
        "weight_bytes": weight_bytes(model),
    }
    if isinstance(model, QuantizedModel):
        figures |= cost_figures(evaluation, objective)
        cost = controller_cost(model)
        return figures | {
            "params": cost.backbone_params,
            "macs": cost.backbone_macs,
            "controller_params": cost.params,
            "controller_macs": cost.macs,
        }
    image = next(model.parameters()).new_zeros(1, *image_shape)
    trace = trace_model(model, image)
    layers = plan_of_trace(trace, lambda name: ((), False)).layers
    macs = sum(layer.macs for layer in trace.layers.values())
    return figures | {
        "costs": {name: full_precision_cost(layers, own) for name, own in all_costs().items()},
        "params": sum(p.numel() for p in model.parameters()),
        "macs": macs,
        "bit_flops_total": FULL_PRECISION_BITS**2 * macs,
    }


def cost_figures(evaluation: Evaluation, objective: Objective) -> dict[str, Any]:
    """The target's cost model, and the mean image's costs by all of them."""
    name = objective.config.cost
    models: dict[str, CostModel] = all_costs() | {name: objective.cost}
    return {
        "cost": name,
        "target_cost": objective.target,
        "costs": {own: evaluation.mean_cost(model) for own, model in sorted(models.items())},
        "peak_activation_bytes": peak_activation_bytes(evaluation.layers),
    } | _winograd_figures(evaluation.layers)


def _winograd_figures(layers: Iterable[LayerPlan]) -> dict[str, Any]:
    """Of the Winograd convolutions together, for one image; nothing without any."""
    own = [layer for layer in layers if layer.winograd is not None]
    if not own:
        return {}
    counts = ("macs", "multiplications", "additions")
    totals = {key: sum(getattr(layer, key) for layer in own) for key in counts}
    return {"winograd": {"layers": len(own)} | totals}


def run_summary(run: RunState, evaluation: Evaluation) -> dict[str, Any]:
    """The content of ``summary.json``, from the evaluation of the test part."""
    objective = run.learner.objective
    figures = summarize(evaluation, run.learner.model, objective, run.splits.image_shape)
    if run.learner.pruning is not None:
        figures["weight_sparsity"] = weight_sparsity(run.learner.model)
    return figures | {
        "epochs": run.config.trainer.epochs,
        "best_epoch": run.best["epoch"],
        "seconds": run.seconds,
        "seed": run.config.seed,
        "damaged_images": len(run.splits.damaged),
    }
