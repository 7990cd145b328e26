"""How often each layer runs at each width."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from dqnet.report.page.figure import SIZE, Figure, tip
from dqnet.report.page.results import Results
from dqnet.report.page.theme import Theme

#: more layers than this and the rows become too thin for numbers
NUMBERED = 40


def width_shares(chosen: np.ndarray, count: int) -> np.ndarray:
    """The share of images ``[L, K]`` that ran each layer at each candidate.

    Args:
        chosen: int ``[N, L]``, index of the precision of each.
        count: how many there are, K.
    """
    return np.stack([(chosen == k).mean(0) for k in range(count)], axis=1)


def layer_widths(results: Results) -> Figure:
    """Layers from first to last against widths; the darker, the more images."""
    candidates, layers = results.candidates, results.layers
    shares = width_shares(results.samples.chosen, len(candidates))
    numbered = len(layers) <= NUMBERED

    def draw(axes: Axes, theme: Theme) -> None:
        for row, layer in enumerate(layers):
            for column, precision in enumerate(candidates):
                share = shares[row, column]
                # Not fully opaque, so that ink stays readable on the darkest cell.
                cell = Rectangle(
                    (column - 0.48, row - 0.46), 0.96, 0.92, color=theme.accent, lw=0,
                    alpha=0.04 + 0.71 * share,
                )  # fmt: skip
                tip(cell, f"{layer} at {precision} bits: {share:.1%} of the images")
                axes.add_patch(cell)
                if numbered:
                    axes.text(
                        column, row, f"{share:.0%}", color=theme.ink, ha="center", va="center",
                        fontsize=8.5,
                    )  # fmt: skip
        step = 1 if numbered else -(-len(layers) // 32)
        axes.set_xticks(range(len(candidates)), [p.label for p in candidates])
        axes.set_yticks(range(0, len(layers), step), layers[::step])
        axes.tick_params(length=0)
        axes.xaxis.tick_top()
        axes.set(xlim=(-0.5, len(candidates) - 0.5), ylim=(len(layers) - 0.5, -0.5))
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)

    return Figure(
        "layer_widths",
        "Widths of each layer",
        "The share of images that ran each layer at each width, first layer on top; a row with "
        "one dark cell is a layer that ignores the image.",
        f"Shares of images at {', '.join(map(str, candidates))} bits. "
        + "; ".join(
            f"{layer}: "
            + ", ".join(f"{s:.0%} at {w}" for s, w in zip(row, candidates, strict=True))
            for layer, row in zip(layers, shares, strict=True)
        ),
        draw,
        (SIZE[0], max(SIZE[1], 0.4 + len(layers) * (0.22 if numbered else 0.055))),
    )
