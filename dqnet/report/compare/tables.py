"""The rows of a comparison: as CSV with every digit, and as tables for people."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dqnet.report.compare.cascades import AgainstStatic
from dqnet.report.compare.groups import Group
from dqnet.report.compare.pairs import Pair
from dqnet.report.runs import Run

#: columns of the tables for people that a narrow terminal has no room for
NOT_ON_SCREEN = (
    "kind",
    "seeds",
    "epochs",
    "of target",
    "mean width",
    "routings",
    "its interval",
    "reached at",
    "with full precision",
    "run twice",
)

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class TextTable:
    """A table as texts; ``rows`` are as long as ``header``."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def run_rows(groups: Iterable[Group]) -> Rows:
    """compare.csv: a row per run. Costs in Bit-FLOPs, accuracies in %, time in seconds."""
    return [_run_row(run, g.label) for g in groups for run in g.runs]


def pair_rows(pairs: Iterable[Pair]) -> Rows:
    """pairs.csv: a row per static network and dynamic line; empty where one has no other."""
    return [_pair_row(pair) for pair in pairs]


def write_csv(path: Path, rows: Rows) -> None:
    """Writes rows under the names of their columns; ``None`` is empty. No rows: no file."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def group_table(groups: Sequence[Group]) -> TextTable:
    """Means over seeds, with their standard deviation where there are several."""
    scale, unit = cost_unit(groups)
    rows = [_group_cells(g, scale, unit) for g in groups]
    return _table("Runs", rows)


def pair_table(pairs: Sequence[Pair]) -> TextTable:
    """Static against dynamic: at equal target, and where the dynamic line is as accurate."""
    return _table("Dynamic against static", [_pair_cells(pair) for pair in pairs])


def cascade_table(cascades: Sequence[AgainstStatic]) -> TextTable:
    """Cascades against static networks: where they are as accurate."""
    return _table("Cascades against static", [_cascade_cells(each) for each in cascades])


def cascade_rows(cascades: Iterable[AgainstStatic]) -> Rows:
    """cascades.csv: a row per cascade and static network; empty where it is not as accurate."""
    return [_cascade_row(each) for each in cascades]


def show(console: Console, table: TextTable) -> None:
    """Prints a table, without the columns that are NOT_ON_SCREEN and with short settings."""
    shown = Table(title=table.title, title_justify="left", box=box.SIMPLE, padding=0)
    kept = [i for i, name in enumerate(table.header) if name not in NOT_ON_SCREEN]
    for i in kept:
        name = table.header[i]
        # Headers and settings may take several lines, words and numbers must not be cut.
        header = name.replace(" ", "\n")
        shown.add_column(header, no_wrap=name != "setting", overflow="fold")
    for row in table.rows:
        # Of a setting only the last part of its key.
        shown.add_row(*(escape(re.sub(r"[\w./]+\.(?=\w+=)", "", row[i])) for i in kept))
    console.print(shown)


def markdown(table: TextTable) -> str:
    """The table with its title as a heading."""
    rows = [table.header, tuple("---" for _ in table.header), *table.rows]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([f"## {table.title}", "", *lines])


def widths(of: Iterable[int]) -> str:
    """``2/3/4``."""
    return "/".join(map(str, of))


def cost_unit(groups: Iterable[Group]) -> tuple[float, str]:
    """How many Bit-FLOPs the unit of a table or an axis has, and its letter."""
    costs = [cost for g in groups if (cost := g.mean("bit_flops"))]
    return (1e9, "G") if costs and min(costs) >= 1e9 else (1e6, "M")


def _run_row(run: Run, label: str) -> dict[str, Any]:
    return {
        "folder": run.folder,
        "method": run.method,
        "label": label,
        "kind": run.kind,
        "widths": widths(run.widths),
        "target_bits": run.target_bits,
        "seed": run.seed,
        "top1": run.top1,
        "top5": run.top5,
        "loss": run.loss,
        "bit_flops": run.bit_flops,
        "relative_cost": run.relative_cost,
        "bit_flops_std": run.bit_flops_std,
        "mean_width": run.mean_width,
        "distinct_routings": run.distinct_routings,
        "epochs": run.epochs,
        "seconds": run.seconds,
        "gain": run.gain and run.gain.points,
        "gain_low": run.gain and run.gain.low,
        "gain_high": run.gain and run.gain.high,
    }


def _pair_row(pair: Pair) -> dict[str, Any]:
    static, dynamic = pair.static, pair.dynamic
    return {
        "method": static.method,
        "label": ", ".join(pair.settings),
        "target_bits": static.target_bits,
        "static_label": static.label,
        "static_runs": len(static.runs),
        "static_top1": static.mean("top1"),
        "static_bit_flops": static.mean("bit_flops"),
        "dynamic_widths": dynamic and widths(dynamic.widths),
        "dynamic_runs": dynamic and len(dynamic.runs),
        "dynamic_top1": dynamic and dynamic.mean("top1"),
        "dynamic_bit_flops": dynamic and dynamic.mean("bit_flops"),
        "difference": pair.difference,
        "difference_std": pair.difference_std,
        "cost_ratio": pair.cost_ratio,
        "same_accuracy_cost_ratio": pair.same_accuracy_ratio,
        "same_accuracy_at": pair.cheapest and pair.cheapest.at,
    }


def _group_cells(g: Group, scale: float, unit: str) -> dict[str, str]:
    dynamic = g.kind == "dynamic"
    gain = g.mean("instance_gain")
    interval = g.runs[0].gain if len(g.runs) == 1 else None
    return {
        "method": g.method,
        "setting": g.label,
        "kind": g.kind,
        "widths": widths(g.widths),
        "target": _text(g.target_bits, "g"),
        "seeds": str(len(g.runs)),
        "epochs": "/".join(str(n) for n in sorted({run.epochs for run in g.runs})),
        "top-1 %": _text(g.mean("top1"), ".2f", g.std("top1")),
        f"Bit-FLOPs ({unit})": _text(
            g.mean("bit_flops"), ".1f", g.std("bit_flops") if dynamic else None, scale
        ),
        "of target": _text(g.mean("relative_cost"), ".3f"),
        "std over images": _text(g.mean("bit_flops_std") if dynamic else None, ".1f", scale=scale),
        "mean width": _text(g.mean("mean_width"), ".2f"),
        "routings": _text(g.mean("distinct_routings"), ".0f") if dynamic else "",
        "instance gain": _text(gain, "+.2f", g.std("instance_gain")),
        "its interval": f"{interval.low:+.2f} to {interval.high:+.2f}" if interval else "",
    }


def _pair_cells(pair: Pair) -> dict[str, str]:
    return {
        "method": pair.static.method,
        "setting": ", ".join(pair.settings),
        "widths": widths(pair.dynamic.widths) if pair.dynamic else "",
        "target": _text(pair.static.target_bits, "g"),
        "static top-1 %": _text(pair.static.mean("top1"), ".2f"),
        "dynamic top-1 %": _text(pair.dynamic and pair.dynamic.mean("top1"), ".2f"),
        "difference": _text(pair.difference, "+.2f", pair.difference_std),
        "cost ratio": _text(pair.cost_ratio, ".3f"),
        "same accuracy at cost ratio": _text(pair.same_accuracy_ratio, ".3f") or "not reached",
        "reached at": pair.cheapest.at if pair.cheapest else "",
    }


def _cascade_row(each: AgainstStatic) -> dict[str, Any]:
    point = each.reached
    return {
        "method": each.method,
        "first": each.cascade.first,
        "second": each.cascade.second,
        "static_bits": each.static.target_bits,
        "static_top1": each.static.mean("top1"),
        "static_bit_flops": each.static.mean("bit_flops"),
        "top1": point and point.top1,
        "bit_flops": point and point.bit_flops,
        "cost_ratio": each.cost_ratio,
        "total_ratio": each.total_ratio,
        "share": point and point.share,
        "gain": point and point.gain,
        "gain_low": point and point.low,
        "gain_high": point and point.high,
    }


def _cascade_cells(each: AgainstStatic) -> dict[str, str]:
    point = each.reached
    interval = f"{point.low:+.2f} to {point.high:+.2f}" if point else ""
    return {
        "method": each.method,
        "first": each.cascade.first,
        "second": each.cascade.second,
        "static": _text(each.static.target_bits, "g"),
        "static top-1 %": _text(each.static.mean("top1"), ".2f"),
        "same accuracy at cost ratio": _text(each.cost_ratio, ".3f") or "not reached",
        "with full precision": _text(each.total_ratio, ".3f"),
        "top-1 %": _text(point and point.top1, ".2f"),
        "run twice": _text(point and 100 * point.share, ".1f") + (" %" if point else ""),
        "instance gain": _text(point and point.gain, "+.2f"),
        "its interval": interval,
    }


def _text(value: float | None, form: str, std: float | None = None, scale: float = 1) -> str:
    """``81.69``, or ``81.69 ± 0.12`` with a standard deviation; empty for no value."""
    if value is None:
        return ""
    spread = "" if std is None else f" ± {std / scale:{form.lstrip('+')}}"
    return f"{value / scale:{form}}{spread}"


def _table(title: str, rows: Sequence[dict[str, str]]) -> TextTable:
    """A table without the columns in which no row says anything."""
    header = tuple(name for name in rows[0] if any(row[name] for row in rows))
    return TextTable(title, header, tuple(tuple(row[name] for name in header) for row in rows))
