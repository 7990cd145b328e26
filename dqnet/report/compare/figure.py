"""Accuracy against Bit-FLOPs: a line per method, static and dynamic in one colour.

Below it the same comparison at its own scale, dynamic less static at equal target, which is often
a fraction of a point where the methods and widths lie ten points apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from dqnet.report.compare.groups import Group
from dqnet.report.compare.pairs import Pair
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
    """How a method with its settings is drawn, and in which unit of cost.

    Static points are hollow and larger, so that a dynamic one on the same spot does not hide them.
    """

    colour: str
    marker: str
    scale: float

    def style(self, kind: str) -> dict[str, object]:
        """Matplotlib's names for how points of a kind are drawn and joined."""
        if kind == "static":
            own = {"marker": "o", "markersize": 9, "markerfacecolor": "none", "linestyle": "-"}
        else:
            own = {"marker": self.marker, "markersize": 5, "linestyle": "--"}
        return own | {"color": self.colour, "linewidth": 1.4, "zorder": 3}


def draw(groups: Sequence[Group], pairs: Sequence[Pair], title: str, paths: Iterable[Path]) -> None:
    """Draws the figure once and saves it under every path; the suffix chooses the format.

    Points are means over seeds, with whiskers from the least to the largest; thin lines are the
    trade-off curves of dynamic networks, cut off below the points; dotted ones are cascades, up to
    their most accurate point; horizontal lines are float models. In the lower panel whiskers are
    the standard deviation of the difference.
    """
    scale, unit = cost_unit(groups)
    names = sorted({_key(g) for g in groups if g.kind != "float"}, key=lambda key: (key[1], key))
    lines = {
        key: Line(
            COLOURS[i % len(COLOURS)],
            DYNAMIC_MARKERS[i // len(COLOURS) % len(DYNAMIC_MARKERS)],
            scale,
        )
        for i, key in enumerate(names)
    }
    compared = [p for p in pairs if p.dynamic is not None]
    handles = [_line_handle(key, line) for key, line in lines.items()]
    handles += _float_handles(groups) + _kind_handles(groups)
    rows = sum(1 + handle.get_label().count("\n") for handle in handles)
    height = max(5.6 if compared else 4.2, LEGEND_ROW * rows)
    figure = Figure(figsize=(7.6, height), layout="constrained")
    ratios = [3, 1] if compared else [1]
    panels = figure.subplots(
        len(ratios), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": ratios}
    )[:, 0]

    _draw_accuracy(panels[0], groups, lines)
    if compared:
        _draw_differences(panels[1], compared, lines)
    for axes in panels:
        axes.grid(color="#e4e4e4", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_title(title, loc="left")
    panels[-1].set_xlabel(f"Bit-FLOPs of the quantized layers, mean image ({unit})")
    _scale_cost(panels[-1], groups, scale)
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
    figure.align_ylabels()
    for path in paths:
        # Without a date the same runs give the same file.
        metadata = {"CreationDate": None} if path.suffix == ".pdf" else None
        figure.savefig(path, dpi=200, metadata=metadata)


def _draw_accuracy(
    axes: Axes, groups: Sequence[Group], lines: dict[tuple[str, tuple[str, ...]], Line]
) -> None:
    for key, line in lines.items():
        for kind in ("static", "dynamic"):
            of_kind = [g for g in groups if _key(g) == key and g.kind == kind]
            _draw_points(axes, sorted(of_kind, key=lambda g: g.mean("bit_flops")), line)
    for g, dashes in _floats(groups):
        axes.axhline(g.mean("top1"), color=GREY, linewidth=1.1, linestyle=dashes, zorder=1)
    axes.margins(x=0.06, y=0.09)
    # Curves reach far below the points that are compared.
    low, high = axes.get_ylim()
    room = max(0.0, LEAST_SPAN - (high - low)) / 2
    axes.set_ylim(low - room, high + room)
    for g in groups:
        if curve := g.curve():
            line = lines[_key(g)]
            x = [point.bit_flops / line.scale for point in curve]
            y = [point.top1 for point in curve]
            axes.plot(x, y, linewidth=0.9, alpha=0.7, zorder=2, color=line.colour)
    for g in groups:
        for cascade in g.cascades:
            best = max(cascade.points, key=lambda point: point.top1)
            points = cascade.points[: cascade.points.index(best) + 1]
            x = [point.bit_flops / lines[_key(g)].scale for point in points]
            y = [point.top1 for point in points]
            axes.plot(x, y, color=lines[_key(g)].colour, **CASCADE)
    axes.set_ylabel("test top-1 accuracy (%)")


def _draw_points(axes: Axes, groups: Sequence[Group], line: Line) -> None:
    if not groups:
        return
    axes.errorbar(
        [g.mean("bit_flops") / line.scale for g in groups],
        [g.mean("top1") for g in groups],
        yerr=list(zip(*map(_whisker, groups), strict=True)),
        elinewidth=1,
        capsize=2.5,
        **line.style(groups[0].kind),
    )


def _whisker(g: Group) -> tuple[float, float]:
    """From the mean down to the least accurate run and up to the most accurate one."""
    values = [run.top1 for run in g.runs]
    least, most, mean = min(values), max(values), g.mean("top1")
    # A whisker of no length would be drawn as its two caps.
    return (mean - least, most - mean) if most > least else (nan, nan)


def _draw_differences(
    axes: Axes, pairs: Sequence[Pair], lines: dict[tuple[str, tuple[str, ...]], Line]
) -> None:
    axes.axhline(0, color="black", linewidth=1, zorder=1)
    for pair in pairs:
        line = lines[_key(pair.dynamic)]
        axes.errorbar(
            [pair.dynamic.mean("bit_flops") / line.scale],
            [pair.difference],
            yerr=None if pair.difference_std is None else [pair.difference_std],
            elinewidth=1,
            capsize=2.5,
            **line.style("dynamic"),
        )
    axes.margins(x=0.06, y=0.25)
    axes.set_ylabel("dynamic − static\n(points)")


def _key(g: Group) -> tuple[str, tuple[str, ...]]:
    return g.method, g.settings


def _name(method: str, settings: Iterable[str]) -> str:
    """A line's name; of a setting only the last part of its key."""
    return "".join([NAMES.get(method, method.upper()), *_short(settings)])


def _short(settings: Iterable[str]) -> list[str]:
    parts = (setting.partition("=") for setting in settings)
    return [f"\n   {key.rpartition('.')[2]}={value}" for key, _, value in parts]


def _floats(groups: Iterable[Group]) -> list[tuple[Group, object]]:
    """The float models, each with its dashes."""
    of_kind = [g for g in groups if g.kind == "float"]
    return [(g, FLOAT_DASHES[i % len(FLOAT_DASHES)]) for i, g in enumerate(of_kind)]


def _line_handle(key: tuple[str, tuple[str, ...]], line: Line) -> Line2D:
    """A line's colour, and its marker where the colour is not the only one of its kind."""
    marker = None if line.marker == DYNAMIC_MARKERS[0] else line.marker
    return Line2D([], [], linewidth=3, color=line.colour, marker=marker, label=_name(*key))


def _float_handles(groups: Iterable[Group]) -> list[Line2D]:
    return [
        Line2D(
            [],
            [],
            color=GREY,
            linewidth=1.1,
            linestyle=dashes,
            label="".join([f"float, {g.mean('top1'):.2f} %", *_short(g.settings)]),
        )
        for g, dashes in _floats(groups)
    ]


def _kind_handles(groups: Iterable[Group]) -> list[Line2D]:
    """What the markers and dashes of the drawn kinds mean."""
    groups = list(groups)
    labels = {"static": "static, one width", "dynamic": "dynamic, per image"}
    example = Line("black", DYNAMIC_MARKERS[0], 1)
    handles = [
        Line2D([], [], label=label, **example.style(kind))
        for kind, label in labels.items()
        if any(g.kind == kind for g in groups)
    ]
    if any(g.curve() for g in groups):
        handles.append(Line2D([], [], color="black", linewidth=0.9, label="dynamic, other budgets"))
    if any(g.cascades for g in groups):
        handles.append(Line2D([], [], color="black", label="cascade of two passes", **CASCADE))
    return handles


def _scale_cost(axes: Axes, groups: Iterable[Group], scale: float) -> None:
    costs = [cost / scale for g in groups if (cost := g.mean("bit_flops"))]
    costs += [point.bit_flops / scale for g in groups for point in g.curve()]
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
