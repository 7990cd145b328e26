"""Cascades that eval.py measured, against static networks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dqnet.engine.files import read_json
from dqnet.errors import UserError

#: of a threshold: the share of images that run twice, costs, top-1 in %, and the instance gain
POINT = (
    *("share", "bit_flops", "bit_flops_total", "top1"),
    *("instance_gain.points", "instance_gain.low", "instance_gain.high"),
)


@dataclass(frozen=True, eq=False)
class Cascade:
    """A run as the first pass of a cascade, at all thresholds.

    Attributes:
        first, second: the passes' widths, and what they were to cost: ``2/3/4 at 3``.
        full_precision: Bit-FLOPs of the second network's full-precision layers.
        points: a row per threshold, by ascending cost, with the columns ``POINT``.
    """

    first: str
    second: str
    full_precision: float
    points: pd.DataFrame


def read_cascade(folder: Path) -> Cascade | None:
    """``cascade.json`` of a run folder; ``None`` without one, or one of another part or checkpoint.

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
        points = pd.json_normalize(content["points"])[list(POINT)].sort_values("bit_flops")
        full_precision = second["bit_flops_total"] - second["bit_flops"]
        return Cascade(_label(first), _label(second), full_precision, points)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not what eval.py writes: {error!r}") from error


def against_static(groups: pd.DataFrame) -> pd.DataFrame:
    """Every cascade beside each static network of its method that it is meant to replace.

    Those are more expensive and more accurate than its first pass alone.

    Returns:
        The columns of ``cascades.csv``. From ``top1`` on they are of the cheapest point that is as
        accurate as the static network, which is a little optimistic, as in a trade-off curve; they
        are empty if there is none. ``cost_ratio`` is its cost over the static one, ``total_ratio``
        the same with full-precision layers, those of the second network for the static one.
    """
    rows = []
    for g in groups.itertuples():
        statics = groups[(groups["kind"] == "static") & (groups["method"] == g.method)]
        for cascade in g.cascades:
            alone = cascade.points.iloc[0]
            replaced = (statics["bit_flops"] > alone["bit_flops"]) & (
                statics["top1"] > alone["top1"]
            )
            for static in statics[replaced].sort_values("bit_flops", kind="stable").itertuples():
                rows.append(
                    {
                        "method": g.method,
                        "first": cascade.first,
                        "second": cascade.second,
                        "static_bits": static.target_bits,
                        "static_top1": static.top1,
                        "static_bit_flops": static.bit_flops,
                        **_reached(cascade, static.top1, static.bit_flops),
                    }
                )
    return pd.DataFrame(rows)


def _reached(cascade: Cascade, top1: float, bit_flops: float) -> dict[str, float]:
    reached = cascade.points[cascade.points["top1"] >= top1]
    point = reached.iloc[0] if len(reached) else pd.Series(float("nan"), POINT)
    return {
        "top1": point["top1"],
        "bit_flops": point["bit_flops"],
        "cost_ratio": point["bit_flops"] / bit_flops,
        "total_ratio": point["bit_flops_total"] / (bit_flops + cascade.full_precision),
        "share": point["share"],
        "gain": point["instance_gain.points"],
        "gain_low": point["instance_gain.low"],
        "gain_high": point["instance_gain.high"],
    }


def _label(network: dict[str, Any]) -> str:
    label = "/".join(map(str, network["widths"]))
    if len(network["widths"]) == 1:
        return label
    bits = network["target_bits"] if network["budget"] is None else network["budget"]
    return f"{label} at {bits:g}"
