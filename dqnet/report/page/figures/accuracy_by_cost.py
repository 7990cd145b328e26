"""Whether the images that get many bits are the hard ones."""

from __future__ import annotations

from matplotlib.axes import Axes
from scipy.stats import binomtest

from dqnet.report.page.figure import Figure, tip
from dqnet.report.page.figures.deciles import deciles
from dqnet.report.page.results import Results
from dqnet.report.page.theme import Theme
from dqnet.units import unit_for


def wilson(share: float, images: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, J. Am. Stat. Assoc. 1927), which stays in [0, 1].

    Where images of equal cost are on both sides of a border, the number of right ones is an
    expectation; the interval is that of the nearest whole number.
    """
    interval = binomtest(round(share * images), images).proportion_ci(method="wilson")
    return interval.low, interval.high


def accuracy_by_cost(results: Results) -> Figure:
    """Top-1 in each tenth of the images, from the cheapest to the most expensive."""
    parts = deciles(results.cost, results.correct)
    unit = unit_for(results.cost.max())
    places = range(1, len(parts) + 1)

    def draw(axes: Axes, theme: Theme) -> None:
        overall = 100 * results.correct.mean()
        axes.axhline(overall, color=theme.muted, lw=1, label=f"all images {overall:.2f} %")
        axes.plot(places, [100 * p.value for p in parts], color=theme.accent, lw=1.2, alpha=0.5)
        for place, part in zip(places, parts, strict=True):
            low, high = (100 * bound for bound in wilson(part.value, part.images))
            axes.plot([place, place], [low, high], color=theme.accent, lw=1.6)
            (dot,) = axes.plot(place, 100 * part.value, "o", color=theme.accent, ms=7)
            tip(
                dot,
                f"{unit.show(part.least)} to {unit.show(part.largest)}: {part.value:.2%} of "
                f"{part.images} images right (95 %: {low:.2f} to {high:.2f})",
            )
        axes.set_xticks(places)
        axes.set(xlabel="tenth of the images, from cheapest to most expensive", ylabel="top-1 (%)")
        axes.margins(x=0.07)
        axes.grid(axis="x", visible=False)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1))

    return Figure(
        "accuracy_by_cost",
        "Accuracy in each tenth of cost",
        "Top-1 of the images from the cheapest tenth to the most expensive, with 95 % intervals; "
        "falling means that the harder images get more bits.",
        "; ".join(f"tenth {i}: {p.value:.1%}" for i, p in zip(places, parts, strict=True)),
        draw,
    )
