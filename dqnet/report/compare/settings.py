"""What tells runs of one method apart: their recorded configurations.

What was typed has a say only in what is shown: it tells which values are defaults.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from dqnet.circumstances import is_circumstance
from dqnet.report.runs import Run

#: settings that have a column of their own in every table
COLUMNS = ("seed", "quant.quantizer", "quant.widths", "loss.target_bits")
#: where a run was made, which counts only if nothing else explains that a seed comes twice
PATHS = ("data.root", "model.checkpoint_path")


def settings_of(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """For each run ``name=value`` of what tells it from the others of its method, sorted."""
    found: dict[Run, tuple[str, ...]] = {}
    for method in {run.method for run in runs}:
        of_method = [run for run in runs if run.method == method]
        settings = _differing(of_method, ignored=(*COLUMNS, *PATHS))
        alike = {
            (run.kind, str(run.widths), run.summary["target_bits"], run.summary["seed"], own)
            for run, own in zip(of_method, settings, strict=True)
        }
        if len(alike) < len(of_method):  # a seed comes twice
            settings = _differing(of_method, ignored=COLUMNS)
        found |= dict(zip(of_method, settings, strict=True))
    return [found[run] for run in runs]


def _differing(runs: Sequence[Run], ignored: Sequence[str]) -> list[tuple[str, ...]]:
    """Settings in which the runs differ, without the defaults.

    A recipe for static networks and one for dynamic ones differ where they have to, so runs of one
    kind are compared, and across kinds only what somebody typed. A default is the value that runs
    have which were started without naming the setting; if there are several, as when a sweep
    was changed in between, none of them is. A setting that a record lacks tells nothing: the record
    is of another version.
    """
    kinds = [run.kind for run in runs]
    values = pd.DataFrame(
        {
            name: _as_typed(value)
            for name, value in run.config.items()
            if name not in ignored and not is_circumstance(name)
        }
        for run in runs
    )
    typed = pd.DataFrame(
        values.columns.isin({o.lstrip("+~").partition("=")[0] for o in run.overrides})
        for run in runs
    ).set_axis(values.columns, axis=1)
    differs = (values.groupby(kinds).nunique() > 1).any()
    differs |= (values.nunique() > 1) & typed.any()
    values, typed = values.loc[:, differs], typed.loc[:, differs]
    untyped = values.mask(typed).groupby(kinds)
    shown = values.ne(untyped.transform("first")) | (untyped.nunique() > 1).any()
    return [
        tuple(sorted(f"{name}={value}" for name, value in row.dropna().items()))
        for _, row in values.where(shown).iterrows()
    ]


def _as_typed(value: Any) -> str:
    """A value as it would be typed; ``1.0`` and ``1`` are the same one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).replace('"', "")
