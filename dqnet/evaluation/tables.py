"""What eval.py prints beside the result: the budget curve, the controls and a cascade."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from dqnet.formats import Precision
from dqnet.training.tables import print_summary
from dqnet.units import MEGA


def print_evaluation(
    console: Console, results: dict[str, Any], points: Sequence[Mapping[str, float]] | None
) -> None:
    """The table that training prints, and those of the curve and the controls if there are any.

    Args:
        console: where to.
        results: the content of ``eval.json``.
        points: the rows of ``curve.csv``.
    """
    print_summary(console, results)
    if points is not None:
        print_curve(console, points, results["budget_lambda"])
    if results["controls"] is not None:
        print_controls(console, results["controls"])


def print_curve(console: Console, points: Sequence[Mapping[str, float]], own: float) -> None:
    """One row per budget; λ = 0 and ``own``, the λ of the evaluation, are marked."""
    shuffled = "shuffled_top1" in points[0]
    names = ["λ", "Bit-FLOPs", "± images", "mean width", "top-1", "loss", "routings"]
    table = Table(title="budgets", title_justify="left")
    for name in [*names, *(["shuffled top-1"] if shuffled else [])]:
        table.add_column(name, justify="right")
    table.add_column("")
    for point in points:
        mark = {own: "budget", 0.0: "trained"}.get(point["budget_lambda"], "")
        table.add_row(
            f"{point['budget_lambda']:.3f}",
            MEGA.show(point["bit_flops"], ".3f"),
            MEGA.show(point["bit_flops_std"], ".3f"),
            f"{point['mean_width']:.3f}",
            f"{point['top1']:.2f} %",
            f"{point['loss']:.4f}",
            f"{point['distinct_routings']}",
            *([f"{point['shuffled_top1']:.2f} %"] if shuffled else []),
            mark,
        )
    console.print(table)


def print_controls(console: Console, controls: Mapping[str, Any]) -> None:
    """Top-1, loss and cost of every control, then what the match of image and routing is worth."""
    table = Table(title="controls", title_justify="left")
    for name in ("routing", "top-1", "loss", "Bit-FLOPs"):
        table.add_column(name, justify="left" if name == "routing" else "right")
    table.add_row("own", *_cells([controls["own"]]))
    for kind in ("shuffled", "random"):
        table.add_row(f"{kind}, mean of {len(controls[kind])}", *_cells(controls[kind]))
    table.add_row("fixed, the most frequent", *_cells([controls["fixed"]]))
    for width, metrics in controls["single"].items():
        table.add_row(f"all at {Precision.parse(width).label}", *_cells([metrics]))
    console.print(table)

    gain, loss = controls["instance_gain"], controls["loss_gain"]
    table = Table(title="own against shuffled", show_header=False, title_justify="left")
    level = f"{gain['confidence']:.0%} interval"
    table.add_row(
        "instance gain",
        f"{gain['points']:+.2f} points ({level} {gain['low']:+.2f} to {gain['high']:+.2f})",
    )
    table.add_row(
        "loss gain", f"{loss['points']:+.4f} ({level} {loss['low']:+.4f} to {loss['high']:+.4f})"
    )
    cost = controls["shuffled_bit_flops_at_own_top1"]
    if cost is not None:
        ratio = cost / controls["own"]["bit_flops"]
        table.add_row(
            "shuffled reaches own top-1", f"at {MEGA.show(cost, '.3f')}, {ratio:.3f} of own"
        )
    console.print(table)


def print_cascade(console: Console, results: Mapping[str, Any]) -> None:
    """One row per threshold: how many images run twice, what it costs and what it brings."""
    table = Table(title="cascade, costs in M Bit-FLOPs", title_justify="left")
    names = ("up to", "run\ntwice", "Bit-\nFLOPs", "in all\nlayers", "top-1\n%", "shuffled\n%")
    for name in (*names, "instance gain"):
        table.add_column(name, justify="right")
    for point in results["points"]:
        gain = point["instance_gain"]
        table.add_row(
            f"{point['threshold']:.3f}",
            f"{point['share']:.1%}",
            MEGA.digits(point["bit_flops"], ".4g"),
            MEGA.digits(point["bit_flops_total"], ".4g"),
            f"{point['top1']:.2f}",
            f"{point['shuffled_top1']:.2f}",
            f"{gain['points']:+.2f} ({gain['low']:.2f} to {gain['high']:.2f})",
        )
    console.print(table)
    second = results["second"]
    alone = f"{second['top1']:.2f} % at {MEGA.show(second['bit_flops'], '.4g')}"
    console.print(
        f"up to this confidence images run twice; the second alone: {alone}", highlight=False
    )


def _cells(metrics: Sequence[Mapping[str, float]]) -> tuple[str, str, str]:
    top1, loss, cost = (
        sum(row[key] for row in metrics) / len(metrics) for key in ("top1", "loss", "bit_flops")
    )
    return f"{top1:.2f} %", f"{loss:.4f}", MEGA.show(cost, ".3f")
