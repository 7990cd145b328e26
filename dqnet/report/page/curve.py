"""The budget curve of an evaluation, ``curve.png`` and ``curve.pdf``, from its files alone."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from dqnet.report.page.figure import Figure
from dqnet.report.page.theme import Theme
from dqnet.runtime.files import read_json
from dqnet.units import unit_for

Points = list[dict[str, float]]


def write_figure(folder: Path) -> list[Path]:
    """Draws ``curve.csv`` and ``eval.json`` of ``folder``; returns the files that it wrote."""
    with (folder / "curve.csv").open(encoding="utf-8", newline="") as file:
        points = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    curve_figure(points, read_json(folder / "eval.json")).save(folder)
    return [folder / "curve.png", folder / "curve.pdf"]


def curve_figure(points: Points, results: dict[str, Any]) -> Figure:
    """Top-1 against the Bit-FLOPs of the mean image.

    Args:
        points: the rows of ``curve.csv``, by rising cost.
        results: ``eval.json``: the evaluation's own λ, and single widths where controls were run.
    """
    unit = unit_for(points[-1]["bit_flops"])

    def series(column: str, rows: Points) -> tuple[list[float], list[float]]:
        return [row["bit_flops"] / unit.divisor for row in rows], [row[column] for row in rows]

    def draw(axes: Axes, theme: Theme) -> None:
        label = "own routing"
        axes.plot(*series("top1", points), "o-", color=theme.accent, ms=4, lw=1.6, label=label)
        if "shuffled_top1" in points[0]:
            label = "shuffled routing"
            axes.plot(*series("shuffled_top1", points), "--", color=theme.muted, label=label)
        own = results["budget_lambda"]
        trained = [row for row in points if row["budget_lambda"] == 0]
        axes.plot(*series("top1", trained), "*", color=theme.contrast, ms=14, label="as trained")
        if own:
            asked = [row for row in points if row["budget_lambda"] == own]
            label = f"budget {results['budget']:g} bits"
            axes.plot(*series("top1", asked), "D", color=theme.contrast, ms=7, label=label)
        for width, single in ((results.get("controls") or {}).get("single") or {}).items():
            x, y = series("top1", [single])
            axes.plot(x, y, "s", color=theme.ink, ms=5)
            text, below = f"all at {width}", {"textcoords": "offset points", "ha": "center"}
            axes.annotate(text, (x[0], y[0]), (0, -13), fontsize=8, **below)
        axes.set(xlabel=unit.axis, ylabel="top-1 (%)")
        axes.margins(0.1)
        # Above the axes: no corner of them is free in every curve.
        axes.legend(fontsize=8.5, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)

    return Figure(
        "curve",
        "Accuracy at every budget",
        "What the same weights reach when Bit-FLOPs cost more or less than in training.",
        "; ".join(f"{row['top1']:.2f} % at {unit.show(row['bit_flops'])}" for row in points),
        draw,
    )
