"""The report's figures."""

from __future__ import annotations

from collections.abc import Sequence

from dqnet.report.page.figure import Figure, in_style
from dqnet.report.page.figures.by_cost import accuracy_by_cost, confidence_by_cost, cost_histogram
from dqnet.report.page.figures.trade_off import trade_off
from dqnet.report.page.figures.widths import class_widths, layer_widths
from dqnet.report.page.results import Results
from dqnet.report.runs import Run

#: the stems of all files that figures are written to
NAMES = (
    *("cost_histogram", "layer_widths", "class_widths", "accuracy_by_cost", "confidence_by_cost"),
    "trade_off",
)


@in_style
def figures_of(results: Results, baselines: Sequence[Run]) -> list[Figure]:
    """The figures that make sense for an evaluation; of a static model there are few."""
    by_cost, routed = results.costs_differ, bool(results.layers)
    figures = [cost_histogram(results)] if by_cost else []
    figures += [layer_widths(results)] if routed else []
    # A pass that is not made is no width.
    figures += [class_widths(results)] if routed and not results.is_cascade else []
    figures += [accuracy_by_cost(results), confidence_by_cost(results)] if by_cost else []
    if len(results.curve) or baselines:
        figures.append(trade_off(results, baselines))
    return figures
