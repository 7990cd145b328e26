"""Figures of the widths that layers and classes run at."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.patches import Rectangle

from dqnet.report.page.figure import ACCENT, INK, MUTED, SIZE, Figure, blank, tip
from dqnet.report.page.figures.by_cost import ABOVE
from dqnet.report.page.results import Results

#: more layers than this and the rows become too thin for numbers
NUMBERED = 40
#: with more classes, those between the lowest and the highest half of these are left out
SHOWN = 30
#: characters of a class name
NAME_LENGTH = 24


def layer_widths(results: Results) -> Figure:
    """Layers from first to last against widths; the darker, the more images."""
    labels = [p.label if p else "not run" for p in results.candidates]
    where = [f"at {p} bits" if p else "not run" for p in results.candidates]
    layers = results.layers
    chosen = results.samples.chosen
    shares = np.stack([(chosen == k).mean(0) for k in range(len(labels))], axis=1)
    numbered = len(layers) <= NUMBERED
    canvas, axes = blank((SIZE[0], max(SIZE[1], 0.4 + len(layers) * (0.22 if numbered else 0.055))))
    for (row, column), share in np.ndenumerate(shares):
        # Not fully opaque, so that ink stays readable on the darkest cell.
        place, shade = (column - 0.48, row - 0.46), 0.04 + 0.71 * share
        cell = Rectangle(place, 0.96, 0.92, color=ACCENT, lw=0, alpha=shade)
        tip(cell, f"{layers[row]} {where[column]}: {share:.1%} of the images")
        axes.add_patch(cell)
        if numbered:
            centred = {"ha": "center", "va": "center", "fontsize": 8.5, "color": INK}
            axes.text(column, row, f"{share:.0%}", **centred)
    step = 1 if numbered else -(-len(layers) // 32)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_yticks(range(0, len(layers), step), layers[::step])
    axes.tick_params(length=0)
    axes.xaxis.tick_top()
    axes.set(xlim=(-0.5, len(labels) - 0.5), ylim=(len(layers) - 0.5, -0.5))
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return Figure(
        "layer_widths",
        "Widths of each layer",
        "The share of images that ran each layer at each width, first layer on top; a row with "
        "one dark cell is a layer that ignores the image.",
        f"Shares of images {', '.join(where)}. "
        + "; ".join(
            f"{layer}: " + ", ".join(f"{s:.0%} {w}" for s, w in zip(row, where, strict=True))
            for layer, row in zip(layers, shares, strict=True)
        ),
        canvas,
    )


def class_widths(results: Results) -> Figure:
    """Classes by their mean width, each as a distance from the mean of all images."""
    by_class = pd.Series(results.widths.mean(1)).groupby(results.labels)
    classes = by_class.agg(["mean", "size"]).sort_values("mean", kind="stable")
    classes["name"] = [results.class_names[i] for i in classes.index]
    shown = classes
    if len(classes) > SHOWN:
        shown = pd.concat([classes.head(SHOWN // 2), classes.tail(SHOWN // 2)])
    omitted = "" if shown is classes else f" ({len(shown)} of {len(classes)} classes)"
    overall = results.widths.mean()
    canvas, axes = blank((SIZE[0], max(SIZE[1], 0.8 + 0.2 * len(shown))))
    axes.axvline(overall, color=MUTED, lw=1, label=f"all images {overall:.3f}")
    for row, (mean, count, name) in enumerate(shown.itertuples(index=False)):
        axes.plot([overall, mean], [row, row], color=ACCENT, lw=2, alpha=0.5)
        (dot,) = axes.plot(mean, row, "o", color=ACCENT, ms=7)
        tip(dot, f"{name}: {mean:.3f} bits, {count} images")
    short = [n if len(n) <= NAME_LENGTH else n[: NAME_LENGTH - 1] + "…" for n in shown["name"]]
    axes.set_yticks(range(len(shown)), short)
    axes.tick_params(axis="y", length=0)
    axes.set(xlabel="mean width (bits)", ylim=(len(shown) - 0.5, -0.5))
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.legend(**ABOVE)
    return Figure(
        "class_widths",
        "Mean width per class",
        f"The bits that a class's images get on average over the routed layers{omitted}; "
        "longer lines are classes that are treated unlike the rest.",
        "; ".join(f"{c.name}: {c.mean:.3f} bits" for c in shown.itertuples(name="Class")),
        canvas,
    )
