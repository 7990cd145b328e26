"""The tables of a comparison: as CSV with every digit, and as texts for people."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dqnet.units import GIGA, MEGA, Unit

#: columns of compare.csv: costs in Bit-FLOPs, accuracies in %, time in seconds
RUN_COLUMNS = (
    *("folder", "method", "label", "kind", "widths", "target_bits", "seed", "top1", "top5", "loss"),
    *("bit_flops", "relative_cost", "bit_flops_std", "mean_width", "distinct_routings", "epochs"),
    *("seconds", "gain", "gain_low", "gain_high"),
)
#: of pairs.csv; empty where a static network has no dynamic one of its target
PAIR_COLUMNS = (
    *("method", "label", "target_bits", "static_label", "static_runs", "static_top1"),
    *("static_bit_flops", "dynamic_widths", "dynamic_runs", "dynamic_top1", "dynamic_bit_flops"),
    *("difference", "difference_std", "cost_ratio", "same_accuracy_cost_ratio", "same_accuracy_at"),
)
#: columns of the tables for people that a narrow terminal has no room for
NOT_ON_SCREEN = (
    *("kind", "seeds", "epochs", "of target", "mean width", "routings", "its interval"),
    *("reached at", "with full precision", "run twice"),
)


def write_csv(path: Path, table: pd.DataFrame, columns: Sequence[str] | None = None) -> None:
    """Writes columns of a table; what is missing is empty. No rows: no file."""
    if table.empty:
        path.unlink(missing_ok=True)
        return
    table.to_csv(path, columns=columns, index=False, lineterminator="\n", errors="surrogateescape")


def group_table(groups: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, with their standard deviation where there are several."""
    unit, dynamic = cost_unit(groups), groups["kind"] == "dynamic"
    epochs = [sorted({run.epochs for run in runs}) for runs in groups["members"]]
    gains = [runs[0].gain if len(runs) == 1 else None for runs in groups["members"]]
    columns = {
        "method": groups["method"],
        "setting": groups["label"],
        "kind": groups["kind"],
        "widths": groups["widths"],
        "target": _texts(groups["target_bits"], "g"),
        "seeds": groups["runs"].map(str),
        "epochs": ["/".join(map(str, each)) for each in epochs],
        "top-1 %": _texts(groups["top1"], ".2f", groups["top1_seeds"]),
        f"Bit-FLOPs ({unit.letter})": _texts(
            groups["bit_flops"] / unit.divisor,
            ".1f",
            groups["bit_flops_seeds"].where(dynamic) / unit.divisor,
        ),
        "of target": _texts(groups["relative_cost"], ".3f"),
        "std over images": _texts(groups["bit_flops_std"].where(dynamic) / unit.divisor, ".1f"),
        "mean width": _texts(groups["mean_width"], ".2f"),
        "routings": _texts(groups["distinct_routings"].where(dynamic), ".0f"),
        "instance gain": _texts(groups["gain"], "+.2f", groups["gain_seeds"]),
        "its interval": [gain and f"{gain.low:+.2f} to {gain.high:+.2f}" for gain in gains],
    }
    return _said("Runs", columns)


def pair_table(pairs: pd.DataFrame) -> pd.DataFrame:
    """Static against dynamic: at equal target, and where the dynamic line is as accurate."""
    columns = {
        "method": pairs["method"],
        "setting": pairs["label"],
        "widths": pairs["dynamic_widths"],
        "target": _texts(pairs["target_bits"], "g"),
        "static top-1 %": _texts(pairs["static_top1"], ".2f"),
        "dynamic top-1 %": _texts(pairs["dynamic_top1"], ".2f"),
        "difference": _texts(pairs["difference"], "+.2f", pairs["difference_std"]),
        "cost ratio": _texts(pairs["cost_ratio"], ".3f"),
        "same accuracy at cost ratio": _reached(pairs["same_accuracy_cost_ratio"]),
        "reached at": pairs["same_accuracy_at"],
    }
    return _said("Dynamic against static", columns)


def cascade_table(cascades: pd.DataFrame) -> pd.DataFrame:
    """Cascades against static networks: where they are as accurate."""
    low, high = (_texts(cascades[name], "+.2f") for name in ("gain_low", "gain_high"))
    columns = {
        "method": cascades["method"],
        "first": cascades["first"],
        "second": cascades["second"],
        "static": _texts(cascades["static_bits"], "g"),
        "static top-1 %": _texts(cascades["static_top1"], ".2f"),
        "same accuracy at cost ratio": _reached(cascades["cost_ratio"]),
        "with full precision": _texts(cascades["total_ratio"], ".3f"),
        "top-1 %": _texts(cascades["top1"], ".2f"),
        "run twice": [text and f"{text} %" for text in _texts(100 * cascades["share"], ".1f")],
        "instance gain": _texts(cascades["gain"], "+.2f"),
        "its interval": [a and f"{a} to {b}" for a, b in zip(low, high, strict=True)],
    }
    return _said("Cascades against static", columns)


def show(console: Console, table: pd.DataFrame) -> None:
    """Prints a table, without the columns that are NOT_ON_SCREEN and with short settings."""
    shown = Table(title=table.attrs["title"], title_justify="left", box=box.SIMPLE, padding=0)
    table = table.drop(columns=list(NOT_ON_SCREEN), errors="ignore")
    for name in table:
        # Headers and settings may take several lines, words and numbers must not be cut.
        shown.add_column(name.replace(" ", "\n"), no_wrap=name != "setting", overflow="fold")
    for row in table.itertuples(index=False):
        # Of a setting only the last part of its key.
        shown.add_row(*(escape(re.sub(r"[\w./]+\.(?=\w+=)", "", cell)) for cell in row))
    console.print(shown)


def markdown(table: pd.DataFrame) -> str:
    """The table with its title as a heading."""
    # pandas' own needs one more package, and pads the columns: a new row would change all lines.
    rows = [table.columns, ["---"] * table.shape[1], *table.itertuples(index=False)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([f"## {table.attrs['title']}", "", *lines])


def cost_unit(groups: pd.DataFrame) -> Unit:
    """The unit of Bit-FLOPs in a table or on an axis."""
    return GIGA if groups["bit_flops"].min() >= GIGA.divisor else MEGA


def _texts(values: pd.Series, form: str, std: pd.Series | None = None) -> list[str]:
    """``81.69``, or ``81.69 ± 0.12`` with a standard deviation; empty for no value."""
    texts = ["" if pd.isna(value) else f"{value:{form}}" for value in values]
    if std is None:
        return texts
    spreads = (f" ± {text}" if text else "" for text in _texts(std, form.lstrip("+")))
    return [text + spread for text, spread in zip(texts, spreads, strict=True)]


def _reached(ratios: pd.Series) -> list[str]:
    return [text or "not reached" for text in _texts(ratios, ".3f")]


def _said(title: str, columns: dict[str, Iterable[str]]) -> pd.DataFrame:
    """A table of texts without the columns in which no row says anything."""
    table = pd.DataFrame({name: list(cells) for name, cells in columns.items()}).fillna("")
    table = table.loc[:, (table != "").any()]
    table.attrs["title"] = title
    return table
