"""Searches for layer-wise precisions: one file per idea, each of which returns a plan."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

from dqnet.search.base import Journal, Problem, Search, find_search  # noqa: E402
from dqnet.search.find_plan import all_pairs, find_plan  # noqa: E402

__all__ = ["Journal", "Problem", "Search", "all_pairs", "find_plan", "find_search"]
