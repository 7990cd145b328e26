"""Runs as a table, and their means over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple

import numpy as np
import pandas as pd

from dqnet.formats import Precision
from dqnet.report.compare.cascades import read_cascade
from dqnet.report.compare.settings import settings_of
from dqnet.report.runs import CurvePoint, Run

KINDS = ("float", "static", "dynamic")
#: runs that are alike in these differ in nothing but the seed, and in where they were made
GROUP = ["method", "settings", "kind", "target_bits", "widths"]
#: what groups have the mean over seeds of
METRICS = (
    *("top1", "bit_flops", "relative_cost", "bit_flops_std", "mean_width", "distinct_routings"),
    "gain",
)
#: of a run, beside its instance gain, the interval
GAIN = ("gain", "gain_low", "gain_high")


def _costs(widths: Sequence[int | str]) -> tuple[int, ...]:
    """What precisions are ordered by."""
    return tuple(Precision.parse(width).bit_product for width in widths)


def run_table(runs: Sequence[Run]) -> pd.DataFrame:
    """A row per run, by method, settings, kind, target and seed; values as they were recorded.

    ``settings`` tell runs of a method apart; with the method they name a line of the figure.
    """
    rows = sorted(
        zip(runs, settings_of(runs), strict=True),
        key=lambda row: (
            *(row[0].method != "float", row[0].method, row[1], KINDS.index(row[0].kind)),
            *(row[0].target_bits or 0, _costs(row[0].widths), row[0].seed),
        ),
    )
    return pd.DataFrame(
        [
            vars(run)
            | {"kind": run.kind, "relative_cost": run.relative_cost}
            | {"settings": settings, "label": ", ".join(settings)}
            | {"widths": "/".join(map(str, run.widths)), "run": run}
            | dict(zip(GAIN, astuple(run.gain) if run.gain else [None] * 3, strict=True))
            for run, settings in rows
        ],
        dtype=object,  # a column of floats would make a float of the integers in it
    )


def group(table: pd.DataFrame) -> pd.DataFrame:
    """A row per group of runs that differ only in the seed.

    Returns:
        The columns of ``GROUP`` and ``label``; ``members``, the runs, and ``runs``, how many; the
        means of ``METRICS`` under their names, and their sample standard deviations over seeds
        under ``NAME_seeds``, NaN for what no run has and for one seed; ``curve``, of
        :func:`mean_curve`; and ``cascades``, those that the runs are the first pass of.
    """
    numbers = table[GROUP].join(table[list(METRICS)].astype(float))
    by_group = numbers.groupby(GROUP, sort=False, dropna=False)
    groups = by_group.mean().join(by_group.std().add_suffix("_seeds"))
    members = table.groupby(GROUP, sort=False, dropna=False)["run"].agg(list)
    groups = groups.assign(
        members=members,
        runs=members.map(len).astype("Int64"),
        curve=members.map(mean_curve),
        cascades=members.map(
            lambda of: [c for run in of if (c := read_cascade(run.folder)) is not None]
        ),
    ).reset_index()
    return groups.assign(
        label=groups["settings"].map(", ".join), target_bits=groups["target_bits"].astype(float)
    )


def mean_curve(runs: Sequence[Run]) -> tuple[CurvePoint, ...]:
    """The mean trade-off curve, by ascending cost; empty unless every run has one.

    Every run has budgets of its own, so the others are read off by straight lines between theirs,
    at the costs of the first run that all of them reach.
    """
    curves = [run.curve for run in runs]
    if len(curves) == 1 or not all(curves):  # one seed's curve beside a mean is not a mean
        return curves[0] if len(curves) == 1 else ()
    first = max(curve[0].bit_flops for curve in curves)
    last = min(curve[-1].bit_flops for curve in curves)
    costs = [point.bit_flops for point in curves[0] if first <= point.bit_flops <= last]
    top1 = [
        np.interp(costs, [p.bit_flops for p in curve], [p.top1 for p in curve]) for curve in curves
    ]
    return tuple(map(CurvePoint, costs, np.mean(top1, axis=0).tolist()))
