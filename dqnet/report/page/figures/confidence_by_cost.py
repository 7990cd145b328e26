"""How sure the network is of its cheap and its expensive images."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from dqnet.report.page.figure import Figure, tip
from dqnet.report.page.figures.deciles import deciles
from dqnet.report.page.results import Results
from dqnet.report.page.theme import Theme
from dqnet.units import unit_for

#: cells along the cost and along the confidence
CELLS = (24, 20)


def density(cost: np.ndarray, confidence: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts of images in cells of cost × confidence, and the edges of both.

    Args:
        cost: ``[N]``.
        confidence: ``[N]`` in [0, 1].
    """
    span = (cost.min(), cost.max()), (0.0, 1.0)
    return np.histogram2d(cost, confidence, CELLS, span)


def confidence_by_cost(results: Results) -> Figure:
    """A map of where the images are, and the mean along the cost."""
    counts, costs, confidences = density(results.cost, results.confidence)
    parts = deciles(results.cost, results.confidence)
    unit = unit_for(results.cost.max())

    def draw(axes: Axes, theme: Theme) -> None:
        x, y = costs / unit.divisor, 100 * confidences
        for i, j in zip(*np.nonzero(counts), strict=True):
            # The logarithm, because most images crowd in the topmost cells.
            shade = np.log1p(counts[i, j]) / np.log1p(counts.max())
            cell = Rectangle(
                (x[i], y[j]), x[i + 1] - x[i], y[j + 1] - y[j], color=theme.accent, lw=0,
                alpha=0.12 + 0.78 * shade,
            )  # fmt: skip
            tip(
                cell,
                f"{unit.show(costs[i])} to {unit.show(costs[i + 1])}, confidence {y[j]:.0f} to "
                f"{y[j + 1]:.0f} %: {counts[i, j]:.0f} images",
            )
            axes.add_patch(cell)
        axes.plot(
            [part.middle / unit.divisor for part in parts], [100 * part.value for part in parts],
            "o-", color=theme.contrast, ms=4, lw=1.6, label="mean of each tenth of the images",
        )  # fmt: skip
        axes.set(xlim=(x[0], x[-1]), ylim=(0, 102), xlabel=unit.axis, ylabel="confidence (%)")
        axes.grid(visible=False)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1))

    return Figure(
        "confidence_by_cost",
        "Confidence against cost",
        "Where the images lie (darker: more of them, on a logarithmic scale) by cost and by the "
        "probability of the predicted class.",
        "Mean confidence of each tenth of the images, cheapest first: "
        + ", ".join(f"{part.value:.1%}" for part in parts),
        draw,
    )
