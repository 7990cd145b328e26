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


def print_outcome(console: Console, outcome: Outcome, number: str = "") -> None:
    """One line; ``number`` stands before it: ``"3/9 "``."""
    what = outcome.error or ", ".join(_metrics(outcome))
    line = f"{number}{outcome.state}: {outcome.folder.name}: {what}"
    console.print(escape(line), style=STYLES[outcome.state], highlight=False, soft_wrap=True)


def print_outcomes(console: Console, folder: Path, outcomes: Sequence[Outcome]) -> None:
    """Top-1 and Bit-FLOPs of the runs below ``folder``, and why the others failed."""
    table = Table(title=escape(f"runs in {folder}"), title_justify="left")
    table.add_column("")
    for heading in ("top-1", "Bit-FLOPs"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("folder", overflow="fold")
    for outcome in outcomes:
        state = f"[{STYLES[outcome.state]}]{outcome.state}[/]"
        table.add_row(state, *_metrics(outcome), escape(outcome.folder.name))
    console.print(table)
    for outcome in outcomes:
        if outcome.error is not None:
            print_outcome(console, outcome)


def _metrics(outcome: Outcome) -> tuple[str, str]:
    if outcome.summary is None:
        return "", ""
    cost = outcome.summary["bit_flops"]
    return f"{outcome.summary['top1']:.2f} %", "float" if cost is None else MEGA.show(cost, ".2f")
