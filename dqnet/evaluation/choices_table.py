"""What ``choices.json`` says, as a table and a figure."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from dqnet.runtime.files import write_atomically, write_text
from dqnet.units import MEGA

if TYPE_CHECKING:
    import pandas as pd

#: by held-out images, of all kinds but the control; a point of another kind in the figure
BEST = "best of these"
#: heading → column of the table, how its numbers are written, and perhaps their standard deviation
COLUMNS = {
    "baseline": ("baseline", ""),
    "static %": ("static_top1", ".2f", "static_top1_seeds"),
    "rival": ("kind", ""),
    "seeds": ("seeds", "d"),
    "top-1 %": ("top1", ".2f", "top1_seeds"),
    "difference": ("difference", "+.2f", "difference_seeds"),
    "its interval": ("interval", ""),
    "at cost": ("relative_cost", ".3f"),
    "at most": ("worst_relative_cost", ".2f"),
    "weights": ("relative_bytes", ".2f"),
    "more passes": ("more_passes", ".2f"),
    "instance gain": ("instance_gain", "+.2f"),
    "same accuracy at cost": ("cost_at_accuracy", ".3f"),
    "with top-1 %": ("top1_at_accuracy", ".2f"),
}
#: heading → column in a terminal of 80 characters, where each baseline has a table of its own
NARROW = {
    "rival": "rival",
    "top-1 %": "top-1 %",
    "difference (interval)": "difference",
    "cost": "at cost",
    "gain": "instance gain",
    "equal at": "same accuracy at cost",
}


def choices_table(results: Mapping[str, Any]) -> pd.DataFrame:
    """One row for each kind of rival of each baseline; of several seeds the mean and the spread.

    Costs and bytes are relative to the baseline's. The interval is that of one seed's difference
    over images; of several seeds, the mean of the ends. Columns in ``_seeds`` are standard
    deviations over seeds.
    """
    import pandas as pd

    rows = []
    for own in results["baselines"]:
        kinds = dict(own["kinds"])
        if own["all_images_twice"] is not None:
            kinds["all images twice"] = {"at_cost": own["all_images_twice"], "at_accuracy": None}
        for kind, choice in kinds.items():
            rows.append(_row(own, kind, choice))
    table = pd.DataFrame(rows)
    # Networks of the same widths need not be seeds of one configuration.
    several = table.groupby("baseline")["configuration"].transform("nunique") > 1
    table.loc[several, "baseline"] += " (" + table["configuration"] + ")"
    keys = ["baseline", "kind"]
    grouped = table.groupby(keys, sort=False)
    means = grouped.mean(numeric_only=True)
    means["seeds"] = grouped.size()
    for name in ("static_top1", "top1", "difference"):
        means[f"{name}_seeds"] = grouped[name].std()
    means = means.drop(columns="seed").reset_index()
    means["interval"] = [
        "" if low != low else f"{low:.2f} to {high:.2f}"
        for low, high in zip(means["low"], means["high"], strict=True)
    ]
    return means


def _row(own: Mapping[str, Any], kind: str, choice: Mapping[str, Any]) -> dict[str, Any]:
    nan = float("nan")
    widths = "/".join(map(str, own["widths"]))
    row = {"baseline": f"{own['quantizer']} {widths}", "kind": kind, "seed": own["seed"]}
    row["configuration"] = own["configuration"]
    row |= {"static_top1": own["top1"], "bit_flops": own["bit_flops"]}
    best, cheapest = choice["at_cost"], choice["at_accuracy"]
    figures = "top1", "relative_cost", "worst_relative_cost", "more_passes"
    row |= {name: nan if best is None else best[name] for name in figures}
    gain = None if best is None else best["instance_gain"]
    row |= {
        "difference": nan if best is None else best["difference"]["points"],
        "low": nan if best is None else best["difference"]["low"],
        "high": nan if best is None else best["difference"]["high"],
        "relative_bytes": nan,
        "instance_gain": nan if gain is None else gain["points"],
        "cost_at_accuracy": nan if cheapest is None else cheapest["relative_cost"],
        "top1_at_accuracy": nan if cheapest is None else cheapest["top1"],
    }
    if best is not None and best["weight_bytes"] and own["weight_bytes"]:
        row["relative_bytes"] = best["weight_bytes"] / own["weight_bytes"]
    return row


def texts(table: pd.DataFrame, spread: bool = True) -> pd.DataFrame:
    """The table as people read it; an empty cell says that there is no such rival.

    Args:
        table: :func:`choices_table`.
        spread: whether standard deviations over seeds stand beside means.
    """
    import pandas as pd

    def written(row: Any, column: str, form: str, deviation: str | None = None) -> str:
        value = row[column]
        if value != value:
            return ""
        several = spread and deviation is not None and row[deviation] == row[deviation]
        return f"{value:{form}}" + (f" ± {row[deviation]:.2f}" if several else "")

    rows = [
        {heading: written(row, *how) for heading, how in COLUMNS.items()}
        for _, row in table.iterrows()
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def print_choices(console: Console, table: pd.DataFrame) -> None:
    """A table for each baseline, whose cost the others are relative to."""
    for name, own in table.groupby("baseline", sort=False):
        seeds = own["seeds"].max()
        title = f"{name} bits: {own['static_top1'].iloc[0]:.2f} % at cost 1"
        title += f", mean of {seeds} seeds" if seeds > 1 else ""
        shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
        for heading in NARROW:
            left = heading == "rival"
            shown.add_column(heading, justify="left" if left else "right", no_wrap=True)
        readable = texts(own, spread=False)
        interval = [f" ({cell})" if cell else "" for cell in readable["its interval"]]
        readable["difference"] += interval
        for cells in readable[[*NARROW.values()]].itertuples(index=False):
            shown.add_row(*cells)
        console.print(shown)
    line = "difference: at no more cost than 1; equal at: the cost of the accuracy of cost 1"
    console.print(line, highlight=False)


def write_choices(table: pd.DataFrame, folder: Path) -> list[Path]:
    """``choices.csv``, ``.md``, ``.png`` and ``.pdf``."""
    paths = [folder / f"choices.{kind}" for kind in ("csv", "md", "png", "pdf")]
    write_atomically(paths[0], partial(table.to_csv, index=False))
    readable = texts(table)
    rows = [readable.columns, ["---"] * readable.shape[1], *readable.itertuples(index=False)]
    write_text(paths[1], "".join(f"| {' | '.join(row)} |\n" for row in rows))
    _draw(table, paths[2:])
    return paths


def _draw(table: pd.DataFrame, paths: list[Path]) -> None:
    """Top-1 against cost, a panel for each method: static networks joined, and what was chosen."""
    from matplotlib.figure import Figure

    methods = [name.split()[0] for name in table["baseline"]]
    names = list(dict.fromkeys(methods))
    figure = Figure(figsize=(4.2 * len(names) + 1.2, 4.0), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    colours = {kind: f"C{number}" for number, kind in enumerate(table["kind"].unique())}
    handles: dict[str, Any] = {}
    for name, axes in zip(names, panels, strict=True):
        own = table[[method == name for method in methods]]
        static = own.drop_duplicates("baseline").sort_values("bit_flops")
        x = static["bit_flops"] / MEGA.divisor
        (handles["static"],) = axes.plot(x, static["static_top1"], "o-", color="black", ms=4)
        for kind, rows in own[own["kind"] != BEST].groupby("kind", sort=False):
            # What is chosen at the cost, and what is chosen at the accuracy.
            cost = [*(rows["relative_cost"] * rows["bit_flops"])]
            cost += [*(rows["cost_at_accuracy"] * rows["bit_flops"])]
            top1 = [*rows["top1"], *rows["top1_at_accuracy"]]
            cost = [value / MEGA.divisor for value in cost]
            (handles[kind],) = axes.plot(cost, top1, "D", color=colours[kind], ms=4, alpha=0.8)
        axes.set(title=name, xlabel=f"{MEGA.axis}, quantized layers", xscale="log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}")
    panels[0].set_ylabel("top-1 (%)")
    figure.legend(
        handles.values(), handles.keys(), ncols=2 + len(names),
        loc="outside lower center", fontsize=8, frameon=False,
    )  # fmt: skip
    for path in paths:
        kind = path.suffix[1:]
        write_atomically(path, lambda file, kind=kind: figure.savefig(file, format=kind, dpi=150))
