"""Runs as a table, and their means over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from dqnet.formats import Precision
from dqnet.report.compare.evaluations import NO_CURVE, read_cascade, read_evaluation
from dqnet.report.compare.settings import settings_of
from dqnet.report.runs import Run

KINDS = ("float", "static", "dynamic")
#: runs that are alike in these differ in nothing but the seed, and in where they were made
GROUP = ["method", "settings", "kind", "target_bits", "widths"]
#: what groups have the mean over seeds of
MEANS = [
    *("top1", "bit_flops", "relative_cost", "bit_flops_std", "mean_width", "distinct_routings"),
    *("gain", "benefit"),
]
#: columns of compare.csv: costs in Bit-FLOPs, accuracies in %, time in seconds
RUN_COLUMNS = [
    *("folder", "method", "label", "kind", "widths", "target_bits", "seed", "top1", "top5", "loss"),
    *("bit_flops", "relative_cost", "bit_flops_std", "mean_width", "distinct_routings", "epochs"),
    *("seconds", "gain", "gain_low", "gain_high", "benefit", "benefit_low", "benefit_high"),
]


def run_table(runs: Sequence[Run]) -> pd.DataFrame:
    """A row per run, by method, settings, kind, target and seed; values as they were recorded.

    Returns:
        ``RUN_COLUMNS``; ``settings``, which tell runs of a method apart and with the method name a
        line of the figure; ``costs`` by cost model; ``bytes`` of the packed network; ``curve`` of
        :func:`read_evaluation` and ``cascade``.
    """
    rows = sorted(zip(runs, settings_of(runs), strict=True), key=_order)
    return pd.DataFrame(
        [
            dict.fromkeys(RUN_COLUMNS)
            | {name: run.summary[name] for name in RUN_COLUMNS if name in run.summary}
            | {"folder": run.folder, "method": run.method, "kind": run.kind}
            | {"settings": settings, "label": ", ".join(settings)}
            | {"widths": "/".join(map(str, run.widths)), "relative_cost": _relative_cost(run)}
            | {"costs": run.summary.get("costs") or {}, "bytes": run.bytes}
            | read_evaluation(run.folder)
            | {"cascade": read_cascade(run.folder)}
            for run, settings in rows
        ],
        dtype=object,  # a column of floats would make a float of the integers in it
    )


def group(table: pd.DataFrame) -> pd.DataFrame:
    """A row per group of runs that differ only in the seed.

    Returns:
        The columns of ``GROUP`` and ``label``; ``runs``, how many; the means of ``MEANS`` under
        their names, and their sample standard deviations over seeds under ``NAME_seeds``, NaN for
        what no run has and for one seed; the ``least`` and the ``largest`` top-1; ``gain_low`` and
        ``gain_high`` of a single run; ``epochs``, different ones joined; ``curve``, of
        :func:`mean_curve`; and ``cascades``, those that the runs are the first pass of.
    """
    numbers = table[GROUP].join(table[[*MEANS, "gain_low", "gain_high"]].astype(float))
    by_group = numbers.groupby(GROUP, sort=False, dropna=False)
    lists = table.groupby(GROUP, sort=False, dropna=False)[["epochs", "curve", "cascade"]].agg(list)
    groups = pd.concat(
        [
            by_group[MEANS].mean(),
            by_group[MEANS].std().add_suffix("_seeds"),
            by_group[["gain_low", "gain_high"]].first().where(by_group.size() == 1),
            by_group["top1"].agg(least="min", largest="max"),
        ],
        axis=1,
    )
    return (
        groups.assign(
            runs=by_group.size().astype("Int64"),  # in pairs some have none
            epochs=lists["epochs"].map(lambda of: "/".join(map(str, sorted(set(of))))),
            curve=lists["curve"].map(mean_curve),
            cascades=lists["cascade"].map(lambda of: [c for c in of if c is not None]),
        )
        .reset_index()
        .assign(
            label=lambda of: of["settings"].map(", ".join),
            target_bits=lambda of: of["target_bits"].astype(float),
        )
    )


def mean_curve(curves: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The mean trade-off curve, by ascending cost; empty unless every run has one.

    Every run has budgets of its own, so the others are read off by straight lines between theirs,
    at the costs of the first run that all of them reach.
    """
    if len(curves) == 1:
        return curves[0]
    if not all(map(len, curves)):  # one seed's curve beside a mean is not a mean
        return NO_CURVE
    first = max(curve["bit_flops"].min() for curve in curves)
    last = min(curve["bit_flops"].max() for curve in curves)
    costs = curves[0]["bit_flops"]
    costs = costs[costs.between(first, last)]
    top1 = [np.interp(costs, curve["bit_flops"], curve["top1"]) for curve in curves]
    return pd.DataFrame({"bit_flops": costs, "top1": np.mean(top1, axis=0)})


def _order(row: tuple[Run, tuple[str, ...]]) -> tuple:
    run, settings = row
    costs = tuple(Precision.parse(width).bit_product for width in run.widths)
    target = run.summary["target_bits"] or 0
    by_kind = KINDS.index(run.kind), target, costs, run.summary["seed"]
    return run.method != "float", run.method, settings, *by_kind


def _relative_cost(run: Run) -> float | None:
    """Bit-FLOPs of the mean image over the target."""
    cost = run.summary["bit_flops"]
    return None if cost is None else cost / run.summary["target_bit_flops"]
