"""One trained network at a range of budgets: ``curve.csv``."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dqnet.evaluation.budget import Calibration, chosen_at
from dqnet.evaluation.controls import SEEDS, derangement
from dqnet.evaluation.routings import Routed
from dqnet.network import QuantizedModel
from dqnet.runtime.files import read_json, remove, write_atomically

#: budgets from the cheapest routing to the most expensive
POINTS = 11
#: entries of ``eval.json`` that say which weights and images a curve is of; it has all budgets
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
    model: QuantizedModel, scores: Tensor, lambdas: Sequence[float], with_shuffled: bool
) -> dict[str, Tensor]:
    """Every image's routing at each λ: uint8 ``[R, N, L]`` by name.

    Args:
        model: a dynamic network.
        scores: ``[N, L, K]``, the controller's.
        lambdas: the points of the curve; R is their number in ``curve``.
        with_shuffled: also ``shuffled curve``, other images' routings: R times the number of SEEDS.
    """
    own = torch.stack([chosen_at(model, scores, value).byte() for value in lambdas])
    if not with_shuffled:
        return {"curve": own}
    orders = [derangement(len(scores), seed) for seed in SEEDS]
    return {
        "curve": own,
        "shuffled curve": torch.cat([at[order][None] for at in own for order in orders]),
    }


def curve_points(
    model: QuantizedModel, answers: Mapping[str, Routed], lambdas: Sequence[float]
) -> list[dict[str, float]]:
    """The rows of ``curve.csv``, from the answers with the routings of :func:`curve_routings`."""
    widths = torch.tensor([p.width for p in model.precisions], dtype=torch.float64)
    own = answers["curve"]
    points = [
        {
            "budget_lambda": value,
            "bit_flops": metrics["bit_flops"],
            "bit_flops_std": cost.std(correction=0).item(),
            "mean_width": widths[chosen.long()].mean().item(),
            "top1": metrics["top1"],
            "loss": metrics["loss"],
            "distinct_routings": len(chosen.unique(dim=0)),
        }
        for value, metrics, cost, chosen in zip(
            lambdas, own.metrics, own.cost, own.chosen, strict=True
        )
    ]
    if "shuffled curve" in answers:
        top1 = [metrics["top1"] for metrics in answers["shuffled curve"].metrics]
        for i, point in enumerate(points):
            of_point = top1[i * len(SEEDS) : (i + 1) * len(SEEDS)]
            point["shuffled_top1"] = sum(of_point) / len(SEEDS)
    return points


def remove_other_curve(folder: Path, results: Mapping[str, Any]) -> bool:
    """Removes a curve of other weights or images, which would pass for one of this evaluation.

    To be called before ``results`` become ``eval.json``: whose the curve is stands in the one
    before. Returns whether there was one.
    """
    if not (folder / "curve.csv").exists():
        return False
    path = folder / "eval.json"
    before = read_json(path) if path.exists() else {}
    if all(before.get(key) == results[key] for key in MEASURED):
        return False
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
