"""What eval.py prints beside the result: the budget curve, the controls and a cascade."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from dqnet.formats import Precision
from dqnet.training.tables import print_summary
from dqnet.units import MEGA

#: controls of a single pass over the images, the last two of a cascade
OTHER_CONTROLS = {
    "fixed": "fixed, the most frequent",
    "best_fixed": "best fixed of no more cost",
    "once": "all images once",
    "twice": "all images twice",
}

#: what own routing is worth: name, unit and form
GAINS = (
    ("instance gain", " points", "+.2f"),
    ("loss gain", "", "+.4f"),
    ("benefit", " points", "+.2f"),
    ("loss benefit", "", "+.4f"),
)


def print_evaluation(
    console: Console, results: dict[str, Any], points: Sequence[Mapping[str, float]] | None
) -> None:
    """``eval.json`` as the table that training prints, the rows of ``curve.csv``, the controls."""
    cascade = results.get("cascade")
    # Most layers of a cascade run at one width, if they run.
    print_summary(console, results if cascade is None else results | {"width_counts": {}})
    if cascade is not None:
        view = "" if cascade["view"] is None else f", the second time as view={cascade['view']}"
        line = f"{cascade['share']:.1%} of the images, those whose confidence is at most "
        console.print(f"{line}{cascade['threshold']:.3f}, run twice{view}", highlight=False)
    if points is not None:
        own = results["budget_lambda"] if cascade is None else cascade["threshold"]
        print_curve(console, points, own)
    if results["controls"] is not None:
        print_controls(console, results["controls"])


def print_curve(console: Console, points: Sequence[Mapping[str, float]], own: float) -> None:
    """One row per budget or threshold; λ = 0 and ``own``, that of the evaluation, are marked."""
    is_cascade = "threshold" in points[0]
    knob, last = ("threshold", "run twice") if is_cascade else ("budget_lambda", "routings")
    headings = ["up to" if is_cascade else "λ", "Bit-FLOPs", "± images"]
    headings += [] if is_cascade else ["mean width"]
    headings += ["top-1", "loss", last]
    headings += ["shuffled top-1"] if "shuffled_top1" in points[0] else []
    table = _table("thresholds" if is_cascade else "budgets", headings)
    table.add_column("")
    marks = {own: "own"} if is_cascade else {own: "budget", 0.0: "trained"}
    for point in points:
        cells = [
            f"{point[knob]:.3f}",
            MEGA.show(point["bit_flops"], ".3f"),
            MEGA.show(point["bit_flops_std"], ".3f"),
        ]
        cells += [] if is_cascade else [f"{point['mean_width']:.3f}"]
        cells += [f"{point['top1']:.2f} %", f"{point['loss']:.4f}"]
        cells += [f"{point['share']:.1%}" if is_cascade else f"{point['distinct_routings']}"]
        cells += [f"{point['shuffled_top1']:.2f} %"] if "shuffled_top1" in point else []
        table.add_row(*cells, marks.get(point[knob], ""))
    console.print(table)


def print_controls(console: Console, controls: Mapping[str, Any]) -> None:
    """Top-1, loss and cost of every control, then what the match of image and routing is worth."""
    table = _table("controls", ["routing", "top-1", "loss", "Bit-FLOPs"])
    table.columns[0].justify = "left"
    rows = {"own": [controls["own"]]}
    for kind in ("shuffled", "random"):
        if kind in controls:
            rows[f"{kind}, mean of {len(controls[kind])}"] = controls[kind]
    for key, name in OTHER_CONTROLS.items():
        if key in controls:
            rows[name] = [controls[key]]
    for width, metrics in controls.get("single", {}).items():
        rows[f"all at {Precision.parse(width).label}"] = [metrics]
    for name, draws in rows.items():
        top1, loss, cost = (
            sum(draw[key] for draw in draws) / len(draws) for key in ("top1", "loss", "bit_flops")
        )
        table.add_row(name, f"{top1:.2f} %", f"{loss:.4f}", MEGA.show(cost, ".3f"))
    console.print(table)

    title = "own against shuffled (gain) and best fixed (benefit)"
    if "benefit" not in controls:
        title = "own against shuffled"
    table = Table(title=title, show_header=False, title_justify="left")
    for name, unit, form in GAINS:
        gain = controls.get(name.replace(" ", "_"))
        if gain is None:
            continue
        points, low, high = (f"{gain[end]:{form}}" for end in ("points", "low", "high"))
        interval = f"{gain['confidence']:.0%} interval {low} to {high}"
        table.add_row(name, f"{points}{unit} ({interval})")
    cost = controls["shuffled_bit_flops_at_own_top1"]
    if cost is not None:
        ratio = cost / controls["own"]["bit_flops"]
        text = f"at {MEGA.show(cost, '.3f')}, {ratio:.3f} of own"
        table.add_row("shuffled reaches own top-1", text)
    console.print(table)


def print_cascade(console: Console, results: Mapping[str, Any]) -> None:
    """One row per threshold: how many images run twice, what it costs and what it brings."""
    headings = ["up to", "run\ntwice", "Bit-\nFLOPs", "in all\nlayers", "top-1\n%", "shuffled\n%"]
    table = _table("cascade, costs in M Bit-FLOPs", [*headings, "instance gain"])
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
    line = f"up to this confidence images run twice; the second alone: {alone}"
    console.print(line, highlight=False)


def _table(title: str, headings: Sequence[str]) -> Table:
    """An empty table of numbers."""
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="right")
    return table
