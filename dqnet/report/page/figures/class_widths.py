"""How many bits the images of each class get."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from dqnet.report.page.figure import SIZE, Figure, tip
from dqnet.report.page.results import Results
from dqnet.report.page.theme import Theme

#: with more classes, those between the lowest and the highest half of these are left out
SHOWN = 30
#: characters of a class name
NAME_LENGTH = 24


def class_means(labels: np.ndarray, widths: np.ndarray, classes: int) -> np.ndarray:
    """The mean width ``[classes]`` over layers and a class's images; NaN for a class without any.

    Args:
        labels: int ``[N]``.
        widths: int ``[N, L]``, L > 0.
    """
    counts = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, widths.mean(1), classes)
    return np.divide(sums, counts, out=np.full(classes, np.nan), where=counts > 0)


def class_widths(results: Results) -> Figure:
    """Classes by their mean width, each as a distance from the mean of all images."""
    means = class_means(results.labels, results.widths, len(results.class_names))
    counts = np.bincount(results.labels, minlength=len(means))
    order = [i for i in np.argsort(means, kind="stable") if counts[i]]
    shown = order if len(order) <= SHOWN else [*order[: SHOWN // 2], *order[-SHOWN // 2 :]]
    overall = results.widths.mean()
    omitted = "" if len(shown) == len(order) else f" ({len(shown)} of {len(order)} classes)"

    def draw(axes: Axes, theme: Theme) -> None:
        axes.axvline(overall, color=theme.muted, lw=1, label=f"all images {overall:.3f}")
        for row, i in enumerate(shown):
            axes.plot([overall, means[i]], [row, row], color=theme.accent, lw=2, alpha=0.5)
            (dot,) = axes.plot(means[i], row, "o", color=theme.accent, ms=7)
            tip(dot, f"{results.class_names[i]}: {means[i]:.3f} bits, {counts[i]} images")
        names = [results.class_names[i] for i in shown]
        short = [n if len(n) <= NAME_LENGTH else n[: NAME_LENGTH - 1] + "…" for n in names]
        axes.set_yticks(range(len(shown)), short)
        axes.tick_params(axis="y", length=0)
        axes.set(xlabel="mean width (bits)", ylim=(len(shown) - 0.5, -0.5))
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1))

    return Figure(
        "class_widths",
        "Mean width per class",
        f"The bits that a class's images get on average over the routed layers{omitted}; "
        "longer stalks are classes that are treated unlike the rest.",
        "; ".join(f"{results.class_names[i]}: {means[i]:.3f} bits" for i in shown),
        draw,
        (SIZE[0], max(SIZE[1], 0.8 + 0.2 * len(shown))),
    )
