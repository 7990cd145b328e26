"""Accuracy of single runs against any cost: a point with a name for each of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from dqnet.errors import unknown_name
from dqnet.report.compare.export_runs import CASCADE, exported_name
from dqnet.report.compare.figure import COLOURS, LOG_FROM
from dqnet.report.runs import reading
from dqnet.runtime.files import read_json

#: of the packed network, which is no cost of an image
BYTES = "bytes"
AXES = {
    BYTES: "kilobytes of the packed network",
    "energy": "energy of an image (millions of 16-bit multiply-accumulates)",
    "bit_flops": "Bit-FLOPs of an image (millions)",
}
DIVISORS = {BYTES: 1e3, "energy": 1e6, "bit_flops": 1e6}


def cost_points(table: pd.DataFrame, cost: str) -> pd.DataFrame:
    """Runs whose cost is known, and cascades that are saved in their folders, by ascending cost.

    Args:
        table: of :func:`dqnet.report.compare.groups.run_table`.
        cost: ``bytes``, or the name of a cost model.

    Returns:
        ``run``, the folder's name; ``top1``; ``cost``. At one cost the most accurate one is first.

    Raises:
        UserError: if no run has it, with those that there are.
    """
    own = [
        {"run": _name(run), "top1": run.top1, BYTES: run.bytes, **run.costs}
        for run in table.itertuples()
    ]
    own += [cascade for run in table.itertuples() for cascade in _cascade(run)]
    columns = ["run", "top1", cost]
    rows = pd.DataFrame(own).reindex(columns=columns).rename(columns={cost: "cost"}).dropna()
    if rows.empty:
        known = sorted({name for costs in table["costs"] for name in costs} | {BYTES})
        raise unknown_name("cost", cost, known, "(no run has it)")
    rows = rows.astype({"top1": float, "cost": float})
    order = ["cost", "top1", "run"]
    return rows.sort_values(order, ascending=[True, False, True], ignore_index=True)


def _name(run: Any) -> str:
    return exported_name(Path(run.folder).name)


def _cascade(run: Any) -> Iterator[dict[str, Any]]:
    """The cascade that was saved in a run's folder, once it was evaluated."""
    path = Path(run.folder) / CASCADE
    if path.exists():
        with reading(path):
            found = read_json(path)
            yield {
                "run": f"{_name(run)}, cascade",
                "top1": found["top1"],
                BYTES: found["weight_bytes"],
                **found["costs"],
            }


def draw_by_cost(points: pd.DataFrame, cost: str, title: str, paths: Iterable[Path]) -> None:
    """Draws the runs of :func:`cost_points`; those that none beats at no more cost are filled."""
    divisor = DIVISORS.get(cost, 1)
    figure = Figure(figsize=(7.6, 4.6), layout="constrained")
    axes = figure.subplots()
    x, y = points["cost"] / divisor, points["top1"]
    best = on_the_front(points)
    axes.scatter(x[best], y[best], s=42, color=COLOURS[0], zorder=3)
    axes.scatter(x[~best], y[~best], s=42, edgecolor=COLOURS[0], facecolor="none", zorder=3)
    axes.step(x[best], y[best], where="post", color=COLOURS[0], linewidth=0.9, alpha=0.6, zorder=2)
    if x.max() > LOG_FROM / 2 * x.min():
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.16, y=0.12)
    for name, a, b, above in zip(points["run"], x, y, _sides(x, y), strict=True):
        axes.annotate(
            name, (a, b), (0, 7 if above else -7), textcoords="offset points", fontsize=8,
            ha="center", va="bottom" if above else "top",
        )  # fmt: skip
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left")
    axes.set_xlabel(AXES.get(cost, cost.replace("_", " ")))
    axes.set_ylabel("test top-1 accuracy (%)")
    for path in paths:
        metadata = {"CreationDate": None} if path.suffix == ".pdf" else None
        figure.savefig(path, dpi=200, metadata=metadata)


def on_the_front(points: pd.DataFrame) -> pd.Series:
    """Which of the runs of :func:`cost_points` no other one matches or beats at no more cost."""
    return points["top1"] > points["top1"].cummax().shift(fill_value=-float("inf"))


def _sides(x: pd.Series, y: pd.Series) -> Sequence[bool]:
    """Above the point or below it, by turns among neighbours, so that names rarely overlap."""
    order = y.rank(method="first").astype(int)
    return [place % 2 == 0 for place in order]
