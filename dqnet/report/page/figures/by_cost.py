"""Figures of the images along their cost: how many, how often right, how sure."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.patches import Rectangle
from scipy.stats import binomtest

from dqnet.report.page.figure import ACCENT, CONTRAST, INK, MUTED, Figure, blank, tip
from dqnet.report.page.results import Results
from dqnet.units import unit_for

BINS, PARTS = 32, 10
#: of the map, along the cost and along the confidence
CELLS = (24, 20)
#: where a legend stands: above the axes, where it hides nothing
ABOVE = {"loc": "lower center", "bbox_to_anchor": (0.5, 1)}


def deciles(cost: np.ndarray, values: np.ndarray) -> pd.DataFrame:
    """Ten equal parts of the images, the cheapest first; fewer if there are fewer images.

    Many images can cost the same, and a border between two parts can fall among them. Then which
    image is on which side is chance: each counts with the mean of all that cost the same, the
    expectation over every way to order them.

    Args:
        cost: ``[N]``.
        values: ``[N]``, numbers or booleans.

    Returns:
        A row per part: how many ``images``; their ``least``, ``mean`` and ``largest`` cost; and the
        mean ``value``.
    """
    table = pd.DataFrame({"cost": cost, "value": values}, dtype=float).sort_values("cost")
    table["value"] = table.groupby("cost")["value"].transform("mean")
    sizes = [len(part) for part in np.array_split(cost, min(PARTS, len(cost)))]
    return table.groupby(np.repeat(np.arange(len(sizes)), sizes)).agg(
        images=("cost", "size"),
        least=("cost", "min"),
        mean=("cost", "mean"),
        largest=("cost", "max"),
        value=("value", "mean"),
    )


def wilson(share: float, images: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, J. Am. Stat. Assoc. 1927), which stays in [0, 1].

    Where images of equal cost are on both sides of a border, the number of right ones is an
    expectation; the interval is that of the nearest whole number.
    """
    interval = binomtest(round(share * images), images).proportion_ci(method="wilson")
    return interval.low, interval.high


def cost_histogram(results: Results) -> Figure:
    """The spread of Bit-FLOPs over images, with the mean and the target."""
    cost, target = results.cost, results.metrics.get("target_bit_flops")
    counts, edges = np.histogram(cost, BINS)
    unit = unit_for(cost.max())
    canvas, axes = blank()
    x = edges / unit.divisor
    bars = axes.bar(x[:-1], counts, np.diff(x) * 0.92, align="edge", color=ACCENT)
    for i, bar in enumerate(bars):
        tip(bar, f"{unit.show(edges[i])} to {unit.show(edges[i + 1])}: {counts[i]} images")
    lines = [(cost.mean(), "mean", INK, "-")]
    if target is not None:
        lines.append((target, "target", CONTRAST, "--"))
    for value, name, colour, style in lines:
        label = f"{name} {unit.show(value)}"
        axes.axvline(value / unit.divisor, color=colour, linestyle=style, lw=1.4, label=label)
    axes.set(xlabel=unit.axis, ylabel="images")
    axes.grid(axis="x", visible=False)
    axes.legend(**ABOVE, ncols=2)
    return Figure(
        "cost_histogram",
        "Bit-FLOPs per image",
        "How many images cost how much; a single tall bar would mean that all are treated alike.",
        f"Histogram of the Bit-FLOPs of {len(cost)} images, from {unit.show(cost.min())} to "
        f"{unit.show(cost.max())}, mean {unit.show(cost.mean())}.",
        canvas,
    )


def accuracy_by_cost(results: Results) -> Figure:
    """Top-1 in each tenth of the images: are those that get many bits the hard ones?"""
    parts = deciles(results.cost, results.correct)
    parts.index += 1
    unit = unit_for(results.cost.max())
    overall = 100 * results.correct.mean()
    canvas, axes = blank()
    axes.axhline(overall, color=MUTED, lw=1, label=f"all images {overall:.2f} %")
    axes.plot(parts.index, 100 * parts["value"], color=ACCENT, lw=1.2, alpha=0.5)
    for part in parts.itertuples():
        low, high = (100 * bound for bound in wilson(part.value, part.images))
        axes.plot([part.Index, part.Index], [low, high], color=ACCENT, lw=1.6)
        (dot,) = axes.plot(part.Index, 100 * part.value, "o", color=ACCENT, ms=7)
        tip(
            dot,
            f"{unit.show(part.least)} to {unit.show(part.largest)}: {part.value:.2%} of "
            f"{part.images} images right (95 %: {low:.2f} to {high:.2f})",
        )
    axes.set_xticks(parts.index)
    axes.set(xlabel="tenth of the images, from cheapest to most expensive", ylabel="top-1 (%)")
    axes.margins(x=0.07)
    axes.grid(axis="x", visible=False)
    axes.legend(**ABOVE)
    return Figure(
        "accuracy_by_cost",
        "Accuracy in each tenth of cost",
        "Top-1 of the images from the cheapest tenth to the most expensive, with 95 % intervals; "
        "a falling line means that the harder images get more bits.",
        "; ".join(f"tenth {i}: {value:.1%}" for i, value in parts["value"].items()),
        canvas,
    )


def confidence_by_cost(results: Results) -> Figure:
    """A map of where the images are, and the mean along the cost."""
    span = (results.cost.min(), results.cost.max()), (0.0, 1.0)
    counts, costs, confidences = np.histogram2d(results.cost, results.confidence, CELLS, span)
    parts = deciles(results.cost, results.confidence)
    unit = unit_for(results.cost.max())
    canvas, axes = blank()
    x, y = costs / unit.divisor, 100 * confidences
    for i, j in zip(*np.nonzero(counts), strict=True):
        # The logarithm, because most images crowd in the topmost cells.
        shade = 0.12 + 0.78 * np.log1p(counts[i, j]) / np.log1p(counts.max())
        width, height = x[i + 1] - x[i], y[j + 1] - y[j]
        cell = Rectangle((x[i], y[j]), width, height, color=ACCENT, lw=0, alpha=shade)
        tip(
            cell,
            f"{unit.show(costs[i])} to {unit.show(costs[i + 1])}, confidence {y[j]:.0f} to "
            f"{y[j + 1]:.0f} %: {counts[i, j]:.0f} images",
        )
        axes.add_patch(cell)
    mean = {"color": CONTRAST, "ms": 4, "lw": 1.6, "label": "mean of each tenth of the images"}
    axes.plot(parts["mean"] / unit.divisor, 100 * parts["value"], "o-", **mean)
    axes.set(xlim=(x[0], x[-1]), ylim=(0, 102), xlabel=unit.axis, ylabel="confidence (%)")
    axes.grid(visible=False)
    axes.legend(**ABOVE)
    return Figure(
        "confidence_by_cost",
        "Confidence against cost",
        "Where the images lie (darker: more of them, on a logarithmic scale) by cost and by the "
        "probability of the predicted class.",
        "Mean confidence of each tenth of the images, cheapest first: "
        + ", ".join(f"{value:.1%}" for value in parts["value"]),
        canvas,
    )
