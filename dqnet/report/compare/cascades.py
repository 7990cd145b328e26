"""Cascades that eval.py measured, against static networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from dqnet.errors import UserError
from dqnet.runtime.files import read_json

#: what is known of a threshold: its name in cascade.json, and in the tables
POINT = {
    "share": "share",
    "bit_flops": "bit_flops",
    "bit_flops_total": "bit_flops_total",
    "top1": "top1",
    "instance_gain.points": "gain",
    "instance_gain.low": "gain_low",
    "instance_gain.high": "gain_high",
}


def read_cascade(folder: Path) -> pd.DataFrame | None:
    """``cascade.json`` of a run folder, the run being the first pass.

    Returns:
        A row per threshold, by ascending cost: the ``share`` of images that run twice, costs, top-1
        in %, and the instance gain with its interval. In every row ``first`` and ``second``, the
        passes' widths and what they were to cost (``2/3/4 at 3``), and ``full_precision``,
        Bit-FLOPs of the second network's full-precision layers. ``None`` without a file, or with
        one of another part of the data or of another checkpoint than the run's summary.

    Raises:
        UserError: if it is broken.
    """
    path = folder / "cascade.json"
    if not path.exists():
        return None
    try:
        content = read_json(path)
        first, second = content["first"], content["second"]
        if content["split"] != "test" or Path(first["checkpoint"]).name != "best.pt":
            return None
        points = pd.json_normalize(content["points"])[list(POINT)].rename(columns=POINT)
        return points.sort_values("bit_flops").assign(
            first=_label(first),
            second=_label(second),
            full_precision=second["bit_flops_total"] - second["bit_flops"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not what eval.py writes: {error!r}") from error


def against_static(groups: pd.DataFrame) -> pd.DataFrame:
    """Every cascade beside each static network of its method that it is meant to replace.

    Those are more expensive and more accurate than its first pass alone.

    Returns:
        The columns of ``cascades.csv``. From ``top1`` on they are of the cheapest point that is as
        accurate as the static network, which is a little optimistic, as in a trade-off curve; they
        are NaN if there is none. ``cost_ratio`` is its cost over the static one, ``total_ratio``
        the same with full-precision layers, those of the second network for the static one.
    """
    rows, nothing = [], pd.Series(float("nan"), POINT.values())
    for g in groups.itertuples():
        statics = groups[(groups["kind"] == "static") & (groups["method"] == g.method)]
        for points in g.cascades:
            alone = points.iloc[0]
            for static in statics.sort_values("bit_flops", kind="stable").itertuples():
                if static.bit_flops <= alone.bit_flops or static.top1 <= alone.top1:
                    continue
                reached = points[points["top1"] >= static.top1]
                point = reached.iloc[0] if len(reached) else nothing
                total = static.bit_flops + alone.full_precision
                rows.append(
                    {
                        "method": g.method,
                        "first": alone["first"],
                        "second": alone["second"],
                        "static_bits": static.target_bits,
                        "static_top1": static.top1,
                        "static_bit_flops": static.bit_flops,
                        "top1": point.top1,
                        "bit_flops": point.bit_flops,
                        "cost_ratio": point.bit_flops / static.bit_flops,
                        "total_ratio": point.bit_flops_total / total,
                        **point[["share", "gain", "gain_low", "gain_high"]],
                    }
                )
    return pd.DataFrame(rows)


def _label(network: dict[str, Any]) -> str:
    label = "/".join(map(str, network["widths"]))
    if len(network["widths"]) == 1:
        return label
    bits = network["target_bits"] if network["budget"] is None else network["budget"]
    return f"{label} at {bits:g}"
