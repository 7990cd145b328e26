"""One trained network at a range of budgets: ``curve.csv``."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dqnet.evaluation.budget import Calibration, chosen_at
from dqnet.evaluation.controls import Key, derangement
from dqnet.evaluation.evaluate_routings import Routed
from dqnet.network import QuantizedModel
from dqnet.runtime.files import read_json, remove, write_atomically

#: budgets from the cheapest routing to the most expensive
POINTS = 11
#: figures of ``eval.json`` that say which weights and images a curve is of; it has all budgets
MEASURED = ("checkpoint_sha256", "split", "data_root", "images")


def curve_lambdas(calibration: Calibration, target: float, budget_lambda: float) -> list[float]:
    """The λ of the points of a curve, by rising cost.

    Args:
        calibration: gives those of evenly spaced budgets.
        target: Bit-FLOPs of the static network that this one is to be compared with: trained to a
            target, it costs a little more or less, and here it costs the same.
        budget_lambda: the evaluation's own; that of the network as it was trained, 0, comes anyway.
    """
    budgets = [*calibration.budgets(POINTS), target]
    lambdas = {calibration.lambda_for(budget) for budget in budgets}
    return sorted(lambdas | {0.0, budget_lambda}, reverse=True)


def curve_routings(
    model: QuantizedModel, scores: Tensor, lambdas: Iterable[float], seeds: Iterable[int]
) -> dict[Key, Tensor]:
    """Every image's routing at each λ, and another image's for each seed: uint8 ``[N, L]`` each.

    Args:
        model: a dynamic network.
        scores: ``[N, L, K]``, the controller's.
        lambdas: the points of the curve.
        seeds: of the permutations, those of the controls; none: no shuffled curve.
    """
    orders = {seed: derangement(len(scores), seed) for seed in seeds}
    routings: dict[Key, Tensor] = {}
    for budget_lambda in lambdas:
        chosen = chosen_at(model, scores, budget_lambda).byte()
        routings[Key("curve", budget_lambda=budget_lambda)] = chosen
        for seed, order in orders.items():
            key = Key("shuffled curve", seed, budget_lambda=budget_lambda)
            routings[key] = chosen[order]
    return routings


def curve_points(
    model: QuantizedModel,
    answers: Mapping[Key, Routed],
    lambdas: Sequence[float],
    seeds: Sequence[int],
) -> list[dict[str, float]]:
    """The rows of ``curve.csv``, from the answers with the routings of :func:`curve_routings`."""
    widths = torch.tensor([p.width for p in model.precisions], dtype=torch.float64)
    points = []
    for budget_lambda in lambdas:
        routed = answers[Key("curve", budget_lambda=budget_lambda)]
        point = {
            "budget_lambda": budget_lambda,
            "bit_flops": routed.cost.mean().item(),
            "bit_flops_std": routed.cost.std(correction=0).item(),
            "mean_width": widths[routed.chosen.long()].mean().item(),
            "top1": routed.metrics["top1"],
            "loss": routed.metrics["loss"],
            "distinct_routings": len(routed.chosen.unique(dim=0)),
        }
        if seeds:
            keys = [Key("shuffled curve", s, budget_lambda=budget_lambda) for s in seeds]
            top1 = [answers[key].metrics["top1"] for key in keys]
            point["shuffled_top1"] = sum(top1) / len(top1)
        points.append(point)
    return points


def remove_other_curve(folder: Path, results: Mapping[str, Any]) -> bool:
    """Removes a curve of other weights or images, which would pass for one of this evaluation.

    To be called before ``eval.json`` is written: whose the curve is stands in the one before.

    Args:
        folder: where the evaluation's files are about to be written.
        results: what ``eval.json`` is going to hold.

    Returns:
        Whether there was one.
    """
    if not (folder / "curve.csv").exists():
        return False
    try:
        before = read_json(folder / "eval.json")
        # Those of earlier versions do not say everything.
        if all(before.get(key, results[key]) == results[key] for key in MEASURED):
            return False
    except (OSError, ValueError):
        pass  # then it may be anyone's
    for kind in ("csv", "png", "pdf"):
        remove(folder / f"curve.{kind}")
    return True


def write_curve(path: Path, points: Sequence[Mapping[str, float]]) -> None:
    """Writes ``curve.csv``, atomically: one row per point, its columns are their keys."""

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            rows = csv.DictWriter(file, list(points[0]))
            rows.writeheader()
            rows.writerows(points)

    write_atomically(path, write)
