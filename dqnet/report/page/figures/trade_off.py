"""Accuracy against cost: one model at every budget, and other runs as points."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from dqnet.report.page.figure import ACCENT, CONTRAST, INK, MUTED, Figure, blank, in_style, tip
from dqnet.report.page.figures.by_cost import ABOVE
from dqnet.report.page.results import Results, read_curve
from dqnet.report.runs import Run
from dqnet.runtime.files import read_json
from dqnet.units import unit_for

#: of the baselines, in their order; the curve has stars and squares of its own
MARKERS = "D^vP<>X"


@in_style
def write_curve(folder: Path) -> list[Path]:
    """Draws ``curve.csv`` and ``eval.json`` of ``folder``; returns the files that it wrote."""
    canvas, axes = blank()
    _draw_curve(axes, read_curve(folder / "curve.csv"), read_json(folder / "eval.json"))
    Figure("curve", "", "", "", canvas).save(folder)
    return [folder / "curve.png", folder / "curve.pdf"]


def described(run: Run) -> str:
    """What a run is, in a few words: ``dorefa, 3 bits``."""
    if not run.widths:
        return "full precision"
    return f"{run.method}, {'/'.join(map(str, run.widths))} bits"


def trade_off(results: Results, baselines: Sequence[Run]) -> Figure:
    """The budget curve where there is one, else the model as a point; and the baselines."""
    curve, metrics = results.curve, results.metrics
    own, top1 = metrics["bit_flops"], metrics["top1"]
    costs = [run.summary["bit_flops"] or 0.0 for run in baselines] + [own or 0.0]
    # The curve sets the unit of the axis, where there is one.
    unit = unit_for(max(curve["bit_flops"], default=max(costs)))
    canvas, axes = blank()
    if len(curve):
        _draw_curve(axes, curve, metrics)
        for row in curve.itertuples():
            # Behind the curve's own points, which have no tooltips.
            spot = {"color": ACCENT, "ms": 4, "zorder": 1.5}
            (dot,) = axes.plot(row.bit_flops / unit.divisor, row.top1, "o", **spot)
            if "threshold" in curve:
                where = f"{row.share:.1%} run twice, up to {row.threshold:.3f}"
            else:
                where = f"λ = {row.budget_lambda:.4g}"
            tip(dot, f"{where}: {row.top1:.2f} %, {unit.show(row.bit_flops)}")
    elif own is not None:
        star = {"color": CONTRAST, "ms": 14, "label": "this evaluation"}
        (dot,) = axes.plot(own / unit.divisor, top1, "*", **star)
        tip(dot, f"this evaluation: {top1:.2f} %, {unit.show(own)}")
    for i, run in enumerate(baselines):
        cost, top1 = run.summary["bit_flops"], run.summary["top1"]
        label = f"{described(run)} (seed {run.summary['seed']})"
        if cost is None:  # a float model has no Bit-FLOPs, and so no place along the axis
            mark = axes.axhline(top1, color=INK, lw=1, linestyle=":", label=label)
            tip(mark, f"{label}: {top1:.2f} %")
            continue
        look = {"color": INK, "ms": 6, "label": label}
        (mark,) = axes.plot(cost / unit.divisor, top1, MARKERS[i % len(MARKERS)], **look)
        tip(mark, f"{label}: {top1:.2f} %, {unit.show(cost)}")
    axes.set(xlabel=unit.axis, ylabel="top-1 (%)")
    axes.margins(0.1)
    axes.legend(**ABOVE, fontsize=8, ncols=2)
    return Figure(
        "trade_off",
        "Accuracy against cost",
        "Top-1 against the Bit-FLOPs of the mean image, of this model"
        f"{' at every budget' if len(curve) else ''} and of the baselines; higher and further left "
        "is better.",
        "; ".join(
            [f"{row.top1:.2f} % at {unit.show(row.bit_flops)}" for row in curve.itertuples()]
            + [f"baseline {described(run)}: {run.summary['top1']:.2f} %" for run in baselines]
        ),
        canvas,
    )


def _draw_curve(axes: Axes, points: pd.DataFrame, metrics: dict[str, Any]) -> None:
    """Top-1 against the Bit-FLOPs of the mean image, by rising cost.

    Args:
        axes: where to.
        points: the rows of ``curve.csv``.
        metrics: ``eval.json``: the evaluation's own λ, and single widths where controls were run.
    """
    unit = unit_for(points["bit_flops"].max())

    def plot(rows: pd.DataFrame, column: str, style: str, **how: Any) -> None:
        axes.plot(rows["bit_flops"] / unit.divisor, rows[column], style, **how)

    plot(points, "top1", "o-", color=ACCENT, ms=4, lw=1.6, label="own routing")
    if "shuffled_top1" in points:
        plot(points, "shuffled_top1", "--", color=MUTED, label="shuffled routing")
    own, star, label = metrics["budget_lambda"], 0.0, "as trained"
    knob = "budget_lambda"
    if "threshold" in points:
        knob, star, label = "threshold", metrics["cascade"]["threshold"], "this cascade"
    trained = points[points[knob] == star]
    plot(trained, "top1", "*", color=CONTRAST, ms=14, label=label)
    if own:
        asked = points[points[knob] == own]
        label = f"budget {metrics['budget']:g} bits"
        plot(asked, "top1", "D", color=CONTRAST, ms=7, label=label)
    for width, single in ((metrics.get("controls") or {}).get("single") or {}).items():
        place = single["bit_flops"] / unit.divisor, single["top1"]
        axes.plot(*place, "s", color=INK, ms=5)
        below = {"textcoords": "offset points", "ha": "center", "fontsize": 8}
        axes.annotate(f"all at {width}", place, (0, -13), **below)
    axes.set(xlabel=unit.axis, ylabel="top-1 (%)")
    axes.margins(0.1)
    # Above the axes: no corner of them is free in every curve.
    axes.legend(fontsize=8.5, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
