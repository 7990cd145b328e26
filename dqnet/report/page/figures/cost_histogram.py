"""How many images cost how much."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from dqnet.report.page.figure import Figure, tip
from dqnet.report.page.results import Results
from dqnet.report.page.theme import Theme
from dqnet.units import unit_for

BINS = 32


def counts_by_cost(cost: np.ndarray, bins: int = BINS) -> tuple[np.ndarray, np.ndarray]:
    """Counts ``[bins]`` and edges ``[bins + 1]`` of equal bins from the least to the largest."""
    return np.histogram(cost, bins)


def cost_histogram(results: Results) -> Figure:
    """The spread of Bit-FLOPs over images, with the mean and the target."""
    cost, target = results.cost, results.figures.get("target_bit_flops")
    counts, edges = counts_by_cost(cost)
    unit = unit_for(cost.max())

    def draw(axes: Axes, theme: Theme) -> None:
        x = edges / unit.divisor
        bars = axes.bar(x[:-1], counts, np.diff(x) * 0.92, align="edge", color=theme.accent)
        for i, bar in enumerate(bars):
            span = f"{unit.show(edges[i])} to {unit.show(edges[i + 1])}"
            tip(bar, f"{span}: {counts[i]} images")
        lines = [(cost.mean(), "mean", theme.ink, "-")]
        if target is not None:
            lines.append((target, "target", theme.contrast, "--"))
        for value, name, colour, style in lines:
            label = f"{name} {unit.show(value)}"
            axes.axvline(value / unit.divisor, color=colour, linestyle=style, lw=1.4, label=label)
        axes.set(xlabel=unit.axis, ylabel="images")
        axes.grid(axis="x", visible=False)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)

    return Figure(
        "cost_histogram",
        "Bit-FLOPs per image",
        "How many images cost how much; a single tall bar would mean that all are treated alike.",
        f"Histogram of the Bit-FLOPs of {len(cost)} images, from {unit.show(cost.min())} to "
        f"{unit.show(cost.max())}, mean {unit.show(cost.mean())}.",
        draw,
    )
