"""The report's figures, one per file: a pure function of arrays, and how its result is drawn."""

from __future__ import annotations

from collections.abc import Sequence

from dqnet.report.page.figure import Figure
from dqnet.report.page.figures.accuracy_by_cost import accuracy_by_cost
from dqnet.report.page.figures.class_widths import class_widths
from dqnet.report.page.figures.confidence_by_cost import confidence_by_cost
from dqnet.report.page.figures.cost_histogram import cost_histogram
from dqnet.report.page.figures.layer_widths import layer_widths
from dqnet.report.page.figures.trade_off import trade_off
from dqnet.report.page.results import Results
from dqnet.report.runs import Run

#: the stems of all files that figures are written to
NAMES = (
    "cost_histogram",
    "layer_widths",
    "class_widths",
    "accuracy_by_cost",
    "confidence_by_cost",
    "trade_off",
)


def figures_of(results: Results, baselines: Sequence[Run]) -> list[Figure]:
    """The figures that make sense for an evaluation; of a static model there are few."""
    figures: list[Figure] = []
    if results.costs_differ:
        figures.append(cost_histogram(results))
    if results.layers:
        figures += [layer_widths(results), class_widths(results)]
    if results.costs_differ:
        figures += [accuracy_by_cost(results), confidence_by_cost(results)]
    if results.curve or baselines:
        figures.append(trade_off(results, baselines))
    return figures
