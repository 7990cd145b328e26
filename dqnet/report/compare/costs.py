"""What runs cost in every cost model, relative to one of them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from dqnet.errors import UserError
from dqnet.report.compare.export_runs import exported_name


def relative_costs(table: pd.DataFrame, baseline: Path | None) -> pd.DataFrame:
    """Every cost of the mean image over that of one run.

    Args:
        table: of :func:`dqnet.report.compare.groups.run_table`.
        baseline: the folder of that run; ``None``: nothing is compared.

    Returns:
        A row for each run whose costs are known: ``run``, the folder's name; ``top1``; and the
        names of costs, NaN where one of the two runs lacks it. Empty without a baseline.

    Raises:
        UserError: if the baseline is not among the runs, or its costs are not known.
    """
    if baseline is None:
        return pd.DataFrame(columns=["run", "top1"])
    folders = [Path(folder).resolve() for folder in table["folder"]]
    if baseline.resolve() not in folders:
        raise UserError(f"--relative-to {baseline} is not one of the runs that are compared")
    costs = pd.DataFrame(list(table["costs"]), dtype=float)
    own = costs.iloc[folders.index(baseline.resolve())].dropna()
    if own.empty:
        raise UserError(f"{baseline} does not say what it costs: evaluate it with eval.py first")
    names = [exported_name(folder.name) for folder in folders]
    rows = pd.DataFrame({"run": names, "top1": table["top1"].astype(float)})
    known = costs.notna().any(axis=1)
    return rows.join(costs[own.index] / own)[known].reset_index(drop=True)
