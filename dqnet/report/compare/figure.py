"""Accuracy against Bit-FLOPs: a line per method, static and dynamic in one colour.

Below it the same comparison at its own scale, dynamic less static at equal target, which is often
a fraction of a point where the methods and widths lie ten points apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import cycle, product
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from dqnet.report.compare.pairs import LINE
from dqnet.report.compare.tables import cost_unit

#: Okabe and Ito 2008: told apart with every form of colour vision; yellow is too pale for lines
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
#: more lines than colours start over with other markers
DYNAMIC_MARKERS = ("D", "P", "X")
#: methods as their papers write them; the others are words
NAMES = {"dorefa": "DoReFa", "lsq_plus": "LSQ+"}
NAMES |= {name: name.upper() for name in ("lsq", "nf4", "pact", "qnn")}
FLOAT_DASHES = ("-.", ":", (0, (1, 3)))
#: hollow and larger, so that a dynamic point on the same spot does not hide a static one
STATIC = {"marker": "o", "markersize": 9, "markerfacecolor": "none", "linestyle": "-"}
DYNAMIC = {"markersize": 5, "linestyle": "--"}
LINES = {"linewidth": 1.4, "zorder": 3}
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


def draw(groups: pd.DataFrame, pairs: pd.DataFrame, title: str, paths: Iterable[Path]) -> None:
    """Draws the figure once and saves it under every path; the suffix chooses the format.

    Points are means over seeds, with whiskers from the least to the largest; thin lines are the
    trade-off curves of dynamic networks, cut off below the points; dotted ones are cascades, up to
    their most accurate point; horizontal lines are float models. In the lower panel whiskers are
    the standard deviation of the difference.
    """
    unit = cost_unit(groups)
    groups = groups.assign(
        bit_flops=groups["bit_flops"] / unit.divisor,
        curve=[c.assign(bit_flops=c["bit_flops"] / unit.divisor) for c in groups["curve"]],
    )
    compared = pairs.dropna(subset="dynamic_top1")
    styles = _styles(groups)
    handles = _handles(groups, styles)
    rows = sum(1 + handle.get_label().count("\n") for handle in handles)
    ratios = [3, 1] if len(compared) else [1]
    height = max(5.6 if len(compared) else 4.2, LEGEND_ROW * rows)
    figure = Figure(figsize=(7.6, height), layout="constrained")
    panels = figure.subplots(
        len(ratios), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": ratios}
    )[:, 0]
    _draw_accuracy(panels[0], groups, styles, unit.divisor)
    if len(compared):
        _draw_differences(panels[1], compared, styles, unit.divisor)
    for axes in panels:
        axes.grid(color="#e4e4e4", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_title(title, loc="left")
    panels[-1].set_xlabel(f"Bit-FLOPs of the quantized layers, mean image ({unit.letter})")
    _scale_cost(panels[-1], groups)
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
    figure.align_ylabels()
    for path in paths:
        # Without a date the same runs give the same file.
        metadata = {"CreationDate": None} if path.suffix == ".pdf" else None
        figure.savefig(path, dpi=200, metadata=metadata)


def _styles(groups: pd.DataFrame) -> dict[tuple, dict[str, str]]:
    """Settings and method of each line → its colour and the marker of its dynamic points."""
    lines = groups.loc[groups["kind"] != "float", LINE[::-1]].drop_duplicates()
    looks = ({"color": c, "marker": m} for m, c in cycle(product(DYNAMIC_MARKERS, COLOURS)))
    lines = lines.sort_values(LINE[::-1]).itertuples(index=False, name=None)
    return dict(zip(lines, looks, strict=False))


def _by_line(table: pd.DataFrame, styles: dict) -> Iterator[tuple[pd.DataFrame, dict[str, str]]]:
    """The rows of each line, with its style."""
    for line, rows in table.groupby(LINE[::-1]):
        if line in styles:
            yield rows, styles[line]


def _draw_accuracy(axes: Axes, groups: pd.DataFrame, styles: dict, divisor: float) -> None:
    whiskers = {"elinewidth": 1, "capsize": 2.5}
    for line, style in _by_line(groups.sort_values("bit_flops", kind="stable"), styles):
        for kind, look in (("static", style | STATIC), ("dynamic", style | DYNAMIC)):
            points = line[line["kind"] == kind]
            if len(points):
                # A whisker of no length would be drawn as its two caps.
                several = points["least"] < points["largest"]
                ends = points["top1"] - points["least"], points["largest"] - points["top1"]
                x, spread = points["bit_flops"], [end.where(several) for end in ends]
                axes.errorbar(x, points["top1"], yerr=spread, **whiskers, **look, **LINES)
    for top1, _, style in _floats(groups):
        axes.axhline(top1, zorder=1, **style)
    axes.margins(x=0.06, y=0.09)
    # Curves reach far below the points that are compared.
    low, high = axes.get_ylim()
    room = max(0.0, LEAST_SPAN - (high - low)) / 2
    axes.set_ylim(low - room, high + room)
    for line, style in _by_line(groups, styles):
        thin = {"linewidth": 0.9, "alpha": 0.7, "zorder": 2, "color": style["color"]}
        for curve in line["curve"]:
            axes.plot(curve["bit_flops"], curve["top1"], **thin)
    for line, style in _by_line(groups, styles):
        for cascade in line["cascades"].explode().dropna():
            points = cascade.iloc[: cascade["top1"].to_numpy().argmax() + 1]
            x = points["bit_flops"] / divisor
            axes.plot(x, points["top1"], color=style["color"], **CASCADE)
    axes.set_ylabel("test top-1 accuracy (%)")


def _draw_differences(axes: Axes, pairs: pd.DataFrame, styles: dict, divisor: float) -> None:
    axes.axhline(0, color="black", linewidth=1, zorder=1)
    for line, style in _by_line(pairs, styles):
        look = style | DYNAMIC | LINES | {"elinewidth": 1, "capsize": 2.5}
        for pair in line.itertuples():
            spread = None if pd.isna(pair.difference_std) else [pair.difference_std]
            axes.errorbar(
                [pair.dynamic_bit_flops / divisor], [pair.difference], yerr=spread, **look
            )
    axes.margins(x=0.06, y=0.25)
    axes.set_ylabel("dynamic − static\n(points)")


def _short(settings: Iterable[str]) -> str:
    """Of each setting only the last part of its key."""
    parts = (setting.partition("=") for setting in settings)
    return "".join(f"\n   {key.rpartition('.')[2]}={value}" for key, _, value in parts)


def _floats(groups: pd.DataFrame) -> Iterator[tuple[float, tuple[str, ...], dict[str, Any]]]:
    """Top-1 and settings of the float models, each with how its line is drawn."""
    floats = groups.loc[groups["kind"] == "float", ["top1", "settings"]]
    for model, dashes in zip(floats.itertuples(index=False), cycle(FLOAT_DASHES), strict=False):
        yield *model, {"color": "#666666", "linewidth": 1.1, "linestyle": dashes}


def _handles(groups: pd.DataFrame, styles: dict) -> list[Line2D]:
    """The legend: lines, float models, and what the markers and dashes of the drawn kinds mean."""
    entries: list[dict[str, Any]] = []
    for (settings, method), style in styles.items():
        label = NAMES.get(method, method.replace("_", " ")) + _short(settings)
        # A marker only where the colour is not the only one of its kind.
        marker = None if style["marker"] == DYNAMIC_MARKERS[0] else style["marker"]
        entries.append(style | {"linewidth": 3, "label": label, "marker": marker})
    for top1, settings, style in _floats(groups):
        entries.append({"label": f"float, {top1:.2f} %{_short(settings)}", **style})
    kinds = {
        "static, one width": (STATIC | LINES, (groups["kind"] == "static").any()),
        "dynamic, per image": (
            DYNAMIC | LINES | {"marker": DYNAMIC_MARKERS[0]},
            (groups["kind"] == "dynamic").any(),
        ),
        "dynamic, other budgets": ({"linewidth": 0.9}, groups["curve"].map(len).any()),
        "cascade of two passes": (CASCADE, groups["cascades"].map(len).any()),
    }
    for label, (style, drawn) in kinds.items():
        if drawn:
            entries.append({"color": "black", "label": label} | style)
    return [Line2D([], [], **entry) for entry in entries]


def _scale_cost(axes: Axes, groups: pd.DataFrame) -> None:
    costs = pd.concat([groups["bit_flops"], *(curve["bit_flops"] for curve in groups["curve"])])
    least, most = costs.min(), costs.max()
    if most > LOG_FROM * least:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    elif most < EQUAL_UNTIL * least:
        axes.set_xlim(least / EQUAL_UNTIL, most * EQUAL_UNTIL)
