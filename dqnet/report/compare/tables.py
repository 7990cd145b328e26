"""The tables of a comparison as texts for people, on the screen and in Markdown."""

from __future__ import annotations

import re

import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dqnet.units import GIGA, MEGA, Unit

#: the heading under which an empty cell says that no point is as accurate
REACHED = "same accuracy at cost ratio"
#: Of each table: heading → a column of texts, or a column of numbers, its format, and perhaps the
#: column of its standard deviation.
RUNS = {
    "method": "method",
    "setting": "label",
    "kind": "kind",
    "widths": "widths",
    "target": ("target_bits", "g"),
    "seeds": ("runs", "d"),
    "epochs": "epochs",
    "top-1 %": ("top1", ".2f", "top1_seeds"),
    "Bit-FLOPs ({unit})": ("bit_flops", ".1f", "bit_flops_seeds"),
    "of target": ("relative_cost", ".3f"),
    "std over images": ("bit_flops_std", ".1f"),
    "mean width": ("mean_width", ".2f"),
    "routings": ("distinct_routings", ".0f"),
    "instance gain": ("gain", "+.2f", "gain_seeds"),
    "its interval": "interval",
    "benefit": ("benefit", "+.2f", "benefit_seeds"),
}
PAIRS = {
    "method": "method",
    "setting": "label",
    "widths": "dynamic_widths",
    "target": ("target_bits", "g"),
    "static top-1 %": ("static_top1", ".2f"),
    "dynamic top-1 %": ("dynamic_top1", ".2f"),
    "difference": ("difference", "+.2f", "difference_std"),
    "cost ratio": ("cost_ratio", ".3f"),
    REACHED: ("same_accuracy_cost_ratio", ".3f"),
    "reached at": "same_accuracy_at",
}
CASCADES = {
    "method": "method",
    "first": "first",
    "second": "second",
    "static": ("static_bits", "g"),
    "static top-1 %": ("static_top1", ".2f"),
    REACHED: ("cost_ratio", ".3f"),
    "with full precision": ("total_ratio", ".3f"),
    "top-1 %": ("top1", ".2f"),
    "run twice": ("share", ".1%"),
    "instance gain": ("gain", "+.2f"),
    "its interval": "interval",
}
#: columns that a narrow terminal has no room for
NOT_ON_SCREEN = [
    *("kind", "seeds", "epochs", "of target", "mean width", "routings", "its interval"),
    *("reached at", "with full precision", "run twice"),
]


def group_table(groups: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, with their standard deviation where there are several."""
    unit, dynamic = cost_unit(groups), groups["kind"] == "dynamic"
    costs = ["bit_flops", "bit_flops_seeds", "bit_flops_std"]
    # A static network costs the same for every image and seed.
    spreads = ["bit_flops_seeds", "bit_flops_std", "distinct_routings"]
    groups = groups.assign(**groups[costs] / unit.divisor)
    groups[spreads] = groups[spreads].where(dynamic)
    columns = {heading.format(unit=unit.letter): column for heading, column in RUNS.items()}
    return _texts("Runs", _with_interval(groups), columns)


def pair_table(pairs: pd.DataFrame) -> pd.DataFrame:
    """Static against dynamic: at equal target, and where the dynamic line is as accurate."""
    return _texts("Dynamic against static", pairs, PAIRS)


def cascade_table(cascades: pd.DataFrame) -> pd.DataFrame:
    """Cascades against static networks: where they are as accurate."""
    return _texts("Cascades against static", _with_interval(cascades), CASCADES)


def cost_table(costs: pd.DataFrame) -> pd.DataFrame:
    """Every cost relative to one run's."""
    columns = {"run": "run", "top-1 %": ("top1", ".2f")}
    columns |= {name: (name, ".3f") for name in costs.columns if name not in ("run", "top1")}
    return _texts("Costs", costs, columns)


def show(console: Console, table: pd.DataFrame) -> None:
    """Prints a table, without the columns that are NOT_ON_SCREEN and with short settings."""
    shown = Table(title=table.attrs["title"], title_justify="left", box=box.SIMPLE, padding=0)
    table = table.drop(columns=NOT_ON_SCREEN, errors="ignore")
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


def _with_interval(table: pd.DataFrame) -> pd.DataFrame:
    low, high = (_formatted(table[name], "+.2f") for name in ("gain_low", "gain_high"))
    return table.assign(interval=(low + " to " + high).where(low != "", ""))


def _texts(title: str, table: pd.DataFrame, columns: dict[str, str | tuple]) -> pd.DataFrame:
    """A table of texts without the columns in which no row says anything."""
    texts = {}
    for heading, column in columns.items():
        if isinstance(column, str):
            texts[heading] = table[column]
            continue
        name, form, *std = column
        texts[heading] = _formatted(table[name], form)
        if std:  # 81.69 ± 0.12
            spread = _formatted(table[std[0]], form.lstrip("+"))
            texts[heading] += (" ± " + spread).where(spread != "", "")
        if heading == REACHED:
            texts[heading] = texts[heading].replace("", "not reached")
    shown = pd.DataFrame(texts).fillna("")
    shown = shown.loc[:, (shown != "").any()]
    shown.attrs["title"] = title
    return shown


def _formatted(values: pd.Series, form: str) -> pd.Series:
    """Empty for no value; a percentage as ``30.0 %``."""
    return values.map(
        lambda value: "" if pd.isna(value) else f"{value:{form}}".replace("%", " %")
    ).astype(object)
