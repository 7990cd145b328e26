"""What a sweep prints: a line for each run that ends, and a table when all have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dqnet.sweep.outcome import Outcome
from dqnet.units import MEGA

STYLES = {"done": "green", "complete before": "dim", "failed": "red"}


def print_outcome(console: Console, number: int, total: int, outcome: Outcome) -> None:
    """One line: the ``number``-th of ``total`` runs has ended."""
    what = outcome.error or ", ".join(_figures(outcome))
    line = f"{number}/{total} {outcome.state}: {outcome.folder.name}: {what}"
    console.print(escape(line), style=STYLES[outcome.state], highlight=False, soft_wrap=True)


def print_outcomes(console: Console, folder: Path, outcomes: Sequence[Outcome]) -> None:
    """Top-1 and Bit-FLOPs of the runs below ``folder``, and why the others failed."""
    table = Table(title=escape(f"runs in {folder}"), title_justify="left")
    table.add_column("")
    table.add_column("top-1", justify="right", no_wrap=True)
    table.add_column("Bit-FLOPs", justify="right", no_wrap=True)
    table.add_column("folder", overflow="fold")
    for outcome in outcomes:
        state = f"[{STYLES[outcome.state]}]{outcome.state}[/]"
        table.add_row(state, *_figures(outcome), escape(outcome.folder.name))
    console.print(table)
    for outcome in outcomes:
        if outcome.error is not None:
            line = f"failed: {outcome.folder.name}: {outcome.error}"
            console.print(escape(line), style=STYLES["failed"], highlight=False, soft_wrap=True)


def _figures(outcome: Outcome) -> tuple[str, str]:
    if outcome.summary is None:
        return "", ""
    cost = outcome.summary["bit_flops"]
    return f"{outcome.summary['top1']:.2f} %", "float" if cost is None else MEGA.show(cost, ".2f")
