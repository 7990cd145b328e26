"""What images cost: one file per cost model, and the sums over a network."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

from dqnet.costs.base import CostModel, find_cost  # noqa: E402
from dqnet.costs.network import bit_flops, cost, cost_table, relative_costs  # noqa: E402
from dqnet.costs.static import static_bit_flops  # noqa: E402

__all__ = [
    "CostModel",
    "bit_flops",
    "cost",
    "cost_table",
    "find_cost",
    "relative_costs",
    "static_bit_flops",
]
