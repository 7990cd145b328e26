"""Accuracy against Bit-FLOPs: a line per method, static and dynamic in one colour.

Below it the same comparison at its own scale, dynamic less static at equal target, which is often
a fraction of a point where the methods and widths lie ten points apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, cycle
from math import nan
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from dqnet.report.compare.tables import cost_unit

#: Okabe and Ito 2008: told apart with every form of colour vision; yellow is too pale for lines
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
#: more lines than colours start over with other markers
DYNAMIC_MARKERS = ("D", "P", "X")
NAMES = {"dorefa": "DoReFa"}
GREY = "#666666"
FLOAT_DASHES = ("-.", ":", (0, (1, 3)))
#: how cascades are drawn, in the colour of their first pass
CASCADE = {"marker": "v", "markersize": 3.5, "linestyle": ":", "linewidth": 1.1, "zorder": 2}
#: inches
LEGEND_ROW = 0.24
#: points of top-1; on less, the noise of one run would fill the figure
LEAST_SPAN = 3.0
#: costs that span more than this are drawn on a logarithmic axis
LOG_FROM = 12
#: costs that span less than this are to look nearly equal
EQUAL_UNTIL = 1.3


@dataclass(frozen=True)
class Line:
    """A method with its settings, and how it is drawn."""

    method: str
    settings: tuple[str, ...]
    colour: str
    marker: str

    @property
    def label(self) -> str:
        """Its name; of a setting only the last part of its key."""
        return NAMES.get(self.method, self.method.upper()) + _short(self.settings)


def draw(groups: pd.DataFrame, pairs: pd.DataFrame, title: str, paths: Iterable[Path]) -> None:
    """Draws the figure once and saves it under every path; the suffix chooses the format.

    Points are means over seeds, with whiskers from the least to the largest; thin lines are the
    trade-off curves of dynamic networks, cut off below the points; dotted ones are cascades, up to
    their most accurate point; horizontal lines are float models. In the lower panel whiskers are
    the standard deviation of the difference.
    """
    unit = cost_unit(groups)
    lines = _lines(groups)
    compared = pairs[pairs["dynamic_top1"].notna()] if len(pairs) else pairs
    handles = _handles(groups, lines)
    rows = sum(1 + handle.get_label().count("\n") for handle in handles)
    height = max(5.6 if len(compared) else 4.2, LEGEND_ROW * rows)
    figure = Figure(figsize=(7.6, height), layout="constrained")
    ratios = [3, 1] if len(compared) else [1]
    panels = figure.subplots(
        len(ratios), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": ratios}
    )[:, 0]

    _draw_accuracy(panels[0], groups, lines, unit.divisor)
    if len(compared):
        _draw_differences(panels[1], compared, lines, unit.divisor)
    for axes in panels:
        axes.grid(color="#e4e4e4", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_title(title, loc="left")
    panels[-1].set_xlabel(f"Bit-FLOPs of the quantized layers, mean image ({unit.letter})")
    _scale_cost(panels[-1], groups, unit.divisor)
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
    figure.align_ylabels()
    for path in paths:
        # Without a date the same runs give the same file.
        metadata = {"CreationDate": None} if path.suffix == ".pdf" else None
        figure.savefig(path, dpi=200, metadata=metadata)


def _lines(groups: pd.DataFrame) -> list[Line]:
    names = groups[groups["kind"] != "float"][["settings", "method"]].drop_duplicates()
    return [
        Line(
            name.method,
            name.settings,
            COLOURS[i % len(COLOURS)],
            DYNAMIC_MARKERS[i // len(COLOURS) % len(DYNAMIC_MARKERS)],
        )
        for i, name in enumerate(names.sort_values(["settings", "method"]).itertuples())
    ]


def _of(line: Line, table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a line."""
    # Compared as a whole, pandas would take the settings for a row of values.
    same = table["settings"].map(lambda settings: settings == line.settings).astype(bool)
    return table[(table["method"] == line.method) & same]


def _style(line: Line, kind: str) -> dict[str, object]:
    """Matplotlib's names for how points of a kind are drawn and joined.

    Static points are hollow and larger, so that a dynamic one on the same spot does not hide them.
    """
    if kind == "static":
        own = {"marker": "o", "markersize": 9, "markerfacecolor": "none", "linestyle": "-"}
    else:
        own = {"marker": line.marker, "markersize": 5, "linestyle": "--"}
    return own | {"color": line.colour, "linewidth": 1.4, "zorder": 3}


def _draw_accuracy(axes: Axes, groups: pd.DataFrame, lines: list[Line], scale: float) -> None:
    for line in lines:
        of_line = _of(line, groups).sort_values("bit_flops", kind="stable")
        for kind in ("static", "dynamic"):
            points = of_line[of_line["kind"] == kind]
            if points.empty:
                continue
            axes.errorbar(
                points["bit_flops"] / scale,
                points["top1"],
                yerr=_whiskers(points),
                elinewidth=1,
                capsize=2.5,
                **_style(line, kind),
            )
    for g, style in _floats(groups):
        axes.axhline(g.top1, zorder=1, **style)
    axes.margins(x=0.06, y=0.09)
    # Curves reach far below the points that are compared.
    low, high = axes.get_ylim()
    room = max(0.0, LEAST_SPAN - (high - low)) / 2
    axes.set_ylim(low - room, high + room)
    for line in lines:
        for curve in _of(line, groups)["curve"]:
            x = [point.bit_flops / scale for point in curve]
            y = [point.top1 for point in curve]
            axes.plot(x, y, linewidth=0.9, alpha=0.7, zorder=2, color=line.colour)
    for line in lines:
        for cascade in chain(*_of(line, groups)["cascades"]):
            points = cascade.iloc[: cascade["top1"].to_numpy().argmax() + 1]
            axes.plot(points["bit_flops"] / scale, points["top1"], color=line.colour, **CASCADE)
    axes.set_ylabel("test top-1 accuracy (%)")


def _whiskers(points: pd.DataFrame) -> list[list[float]]:
    """From the means down to the least accurate run and up to the most accurate one."""
    top1 = [[run.top1 for run in runs] for runs in points["members"]]
    ends = [
        # A whisker of no length would be drawn as its two caps.
        (mean - min(of), max(of) - mean) if max(of) > min(of) else (nan, nan)
        for mean, of in zip(points["top1"], top1, strict=True)
    ]
    return [list(end) for end in zip(*ends, strict=True)]


def _draw_differences(axes: Axes, pairs: pd.DataFrame, lines: list[Line], scale: float) -> None:
    axes.axhline(0, color="black", linewidth=1, zorder=1)
    for line in lines:
        for pair in _of(line, pairs).itertuples():
            axes.errorbar(
                [pair.dynamic_bit_flops / scale],
                [pair.difference],
                yerr=None if pd.isna(pair.difference_std) else [pair.difference_std],
                elinewidth=1,
                capsize=2.5,
                **_style(line, "dynamic"),
            )
    axes.margins(x=0.06, y=0.25)
    axes.set_ylabel("dynamic − static\n(points)")


def _short(settings: Iterable[str]) -> str:
    parts = (setting.partition("=") for setting in settings)
    return "".join(f"\n   {key.rpartition('.')[2]}={value}" for key, _, value in parts)


def _floats(groups: pd.DataFrame) -> list[tuple[Any, dict[str, object]]]:
    """The float models, each with how its line is drawn."""
    of_kind = groups[groups["kind"] == "float"].itertuples()
    return [
        (g, {"color": GREY, "linewidth": 1.1, "linestyle": dashes})
        for g, dashes in zip(of_kind, cycle(FLOAT_DASHES), strict=False)
    ]


def _handles(groups: pd.DataFrame, lines: list[Line]) -> list[Line2D]:
    """The legend: lines, float models, and what the markers and dashes of the drawn kinds mean."""
    entries: list[dict[str, object]] = [
        # A marker only where the colour is not the only one of its kind.
        {"linewidth": 3, "color": line.colour, "label": line.label}
        | ({} if line.marker == DYNAMIC_MARKERS[0] else {"marker": line.marker})
        for line in lines
    ]
    for g, style in _floats(groups):
        entries.append({"label": f"float, {g.top1:.2f} %{_short(g.settings)}", **style})
    example = Line("", (), "black", DYNAMIC_MARKERS[0])
    for kind, label in (("static", "static, one width"), ("dynamic", "dynamic, per image")):
        if kind in groups["kind"].to_numpy():
            entries.append({"label": label, **_style(example, kind)})
    if groups["curve"].map(len).any():
        entries.append({"color": "black", "linewidth": 0.9, "label": "dynamic, other budgets"})
    if groups["cascades"].map(len).any():
        entries.append({"color": "black", "label": "cascade of two passes", **CASCADE})
    return [Line2D([], [], **entry) for entry in entries]


def _scale_cost(axes: Axes, groups: pd.DataFrame, scale: float) -> None:
    costs = [cost / scale for cost in groups["bit_flops"].dropna()]
    costs += [point.bit_flops / scale for curve in groups["curve"] for point in curve]
    if not costs:
        return
    least, most = min(costs), max(costs)
    if most > LOG_FROM * least:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    elif most < EQUAL_UNTIL * least:
        axes.set_xlim(least / EQUAL_UNTIL, most * EQUAL_UNTIL)
