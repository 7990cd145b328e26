"""Accuracy against cost: one model's whole curve, and other runs as points."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from dqnet.report.page.curve import curve_figure
from dqnet.report.page.figure import Figure, tip
from dqnet.report.page.results import Results
from dqnet.report.page.theme import Theme
from dqnet.report.runs import Run
from dqnet.units import Unit, unit_for

#: of the baselines, in their order; the curve has stars and squares of its own
MARKERS = "D^vP<>X"


def described(run: Run) -> str:
    """What a run is, in a few words: ``dorefa, 3 bits``."""
    if not run.widths:
        return "full precision"
    return f"{run.method}, {'/'.join(map(str, run.widths))} bits"


def trade_off(results: Results, baselines: Sequence[Run]) -> Figure:
    """The budget curve where there is one, else the model as a point; and the baselines."""
    curve, own = results.curve, results.figures["bit_flops"]
    costs = [run.bit_flops for run in baselines] + [row["bit_flops"] for row in curve] + [own]
    # The curve sets the unit of the axis, where there is one.
    unit = unit_for(curve[-1]["bit_flops"] if curve else max(cost or 0.0 for cost in costs))

    def draw(axes: Axes, theme: Theme) -> None:
        if curve:
            curve_figure(list(curve), results.figures).draw(axes, theme)
            for row in curve:
                cost = row["bit_flops"]
                # Behind the curve's own points, which say nothing when pointed at.
                spot = {"color": theme.accent, "ms": 4, "zorder": 1.5}
                (dot,) = axes.plot(cost / unit.divisor, row["top1"], "o", **spot)
                tip(dot, f"λ = {row['budget_lambda']:.4g}: {row['top1']:.2f} %, {unit.show(cost)}")
        elif own is not None:
            top1 = results.figures["top1"]
            star = {"color": theme.contrast, "ms": 14, "label": "this evaluation"}
            (dot,) = axes.plot(own / unit.divisor, top1, "*", **star)
            tip(dot, f"this evaluation: {top1:.2f} %, {unit.show(own)}")
        for i, run in enumerate(baselines):
            _draw_baseline(axes, theme, run, MARKERS[i % len(MARKERS)], unit)
        axes.set(xlabel=unit.axis, ylabel="top-1 (%)")
        axes.margins(0.1)
        axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)

    return Figure(
        "trade_off",
        "Accuracy against cost",
        "Top-1 against the Bit-FLOPs of the mean image, of this model"
        f"{' at every budget' if curve else ''} and of the baselines; higher and further left is "
        "better.",
        "; ".join(
            [f"{row['top1']:.2f} % at {unit.show(row['bit_flops'])}" for row in curve]
            + [f"baseline {described(run)}: {run.top1:.2f} %" for run in baselines]
        ),
        draw,
    )


def _draw_baseline(axes: Axes, theme: Theme, run: Run, marker: str, unit: Unit) -> None:
    label = f"{described(run)} (seed {run.seed})"
    if run.bit_flops is None:
        # It has no Bit-FLOPs, and so no place along the axis.
        mark = axes.axhline(run.top1, color=theme.ink, lw=1, linestyle=":", label=label)
        tip(mark, f"{label}: {run.top1:.2f} %")
        return
    (mark,) = axes.plot(
        run.bit_flops / unit.divisor, run.top1, marker, color=theme.ink, ms=6, label=label
    )
    tip(mark, f"{label}: {run.top1:.2f} %, {unit.show(run.bit_flops)}")
