"""What ``eval.json`` and ``curve.csv`` say of a cascade that was saved."""

from __future__ import annotations

from math import isclose
from typing import Any

import torch

from dqnet.cascade import Cascade
from dqnet.costs.controller import controller_cost
from dqnet.costs.size import weight_bytes
from dqnet.evaluation.cascade import (
    CascadeEvaluation,
    evaluate_passes,
    is_unsure,
    shuffled,
    thresholds,
    with_again,
)
from dqnet.evaluation.controls import SEEDS, gains
from dqnet.evaluation.trained import Trained
from dqnet.measurement import Evaluation, percent
from dqnet.network import QuantizedModel
from dqnet.training.metrics import cost_figures
from dqnet.training.objective import Objective


def summarize_cascade(
    evaluation: CascadeEvaluation, cascade: Cascade, objective: Objective
) -> dict[str, Any]:
    """As :func:`dqnet.training.metrics.summarize`; its target is that of the first network.

    Sizes are sums over the networks, multiply-accumulates those of the mean image. ``cascade`` has
    the settings and the share of images that ran twice.
    """
    networks = [own for own in cascade.modules() if isinstance(own, QuantizedModel)]
    costs = [controller_cost(own) for own in networks]
    sizes = [weight_bytes(own) for own in networks]
    return (
        evaluation.metrics
        | cost_figures(evaluation, objective)
        | {
            "target_bits": objective.target_bits,
            "target_bit_flops": objective.target_bit_flops,
            "weight_bytes": None if None in sizes else sum(sizes),
            "params": sum(own.backbone_params for own in costs),
            "macs": _macs(evaluation),
            "controller_params": sum(own.params for own in costs),
            "controller_macs": sum(own.macs for own in costs),
            "cascade": cascade.described() | {"share": evaluation.share},
        }
    )


def _macs(evaluation: Evaluation) -> float:
    if isinstance(evaluation, CascadeEvaluation):
        return _macs(evaluation.once) + evaluation.share * _macs(evaluation.twice)
    return sum(layer.macs for layer in evaluation.layers)


def cascade_controls(own: CascadeEvaluation) -> dict[str, Any]:
    """``controls`` of ``eval.json``: other images run twice, no image does, all do.

    Returns:
        ``own``; ``shuffled``, with one seed each; ``once`` and ``twice``, all images; and the gains
        over shuffled, as of a dynamic network.
    """
    others = shuffled(own)
    instance_gain, loss_gain = gains(
        own.correct.double() - torch.stack([o.correct for o in others]).double().mean(0),
        torch.stack([o.losses for o in others]).mean(0) - own.losses,
    )
    everywhere = torch.ones_like(own.again)
    return {
        "own": _figures(own),
        "shuffled": [{"seed": s} | _figures(o) for s, o in zip(SEEDS, others, strict=True)],
        "once": _figures(with_again(own, ~everywhere)),
        "twice": _figures(with_again(own, everywhere)),
        "instance_gain": instance_gain,
        "loss_gain": loss_gain,
        "shuffled_bit_flops_at_own_top1": None,
    }


def _figures(evaluation: Evaluation) -> dict[str, float]:
    return {name: evaluation.metrics[name] for name in ("top1", "loss", "bit_flops")}


def cascade_curve(trained: Trained, own: CascadeEvaluation) -> list[dict[str, float]]:
    """The rows of ``curve.csv``, by rising cost: thresholds, of which one is the cascade's own.

    The others let shares of the calibration images run twice; temperatures and weight stay.
    """
    cascade, calibration = trained.model, trained.data.calibration
    first = evaluate_passes(cascade.first, calibration, calibration, *trained.how)
    confidence = cascade.tempered(first.logits, 0).double().exp().amax(1)
    rows = []
    mine = cascade.threshold.item()
    others = [value for value in thresholds(confidence) if not isclose(value, mine, rel_tol=1e-6)]
    for threshold in sorted([mine, *others]):
        point = with_again(own, is_unsure(threshold, own.once))
        hits = torch.stack([other.correct for other in shuffled(point)])
        names = ("bit_flops", "bit_flops_std", "mean_width", "top1", "loss")
        rows.append(
            {"threshold": threshold, "share": point.share}
            | {name: point.metrics[name] for name in names}
            | {"shuffled_top1": percent(hits.flatten())}
        )
    return rows
