"""Static against dynamic: at equal cost, and at equal accuracy."""

from __future__ import annotations

import numpy as np
import pandas as pd

LINE = ["method", "settings"]


def pair(groups: pd.DataFrame) -> pd.DataFrame:
    """Pairs every dynamic line with each static network of its method and its settings.

    A static network has no use for some settings of a dynamic one, the controller's for instance,
    so it need not have them. Those it does have the line must have as well. Of several, the one
    that shares most settings is taken. With no dynamic runs of equal target there is a pair only if
    another target beats the static network: as accurate and cheaper.

    Returns:
        A row per pair: ``method``, ``settings`` and ``label`` of the line, ``target_bits``; the
        columns of both groups with ``static_`` and ``dynamic_`` before their names, the latter NaN
        without dynamic runs of that target. ``difference``: top-1 of dynamic less static, points,
        and ``difference_std`` between one run and one run, which are taken as independent: an equal
        seed means the same order of images, not the same noise in the result. ``cost_ratio``:
        dynamic over static. ``same_accuracy_cost_ratio``: of the cheapest point of the line that
        is as accurate as the static network, and ``same_accuracy_at``, where that is.
    """
    static, dynamic = (
        groups[groups["kind"] == kind]
        .drop(columns="kind")
        .rename(columns=lambda name, kind=kind: name if name in KEPT[kind] else f"{kind}_{name}")
        for kind in ("static", "dynamic")
    )
    lines = dynamic[LINE].drop_duplicates().rename_axis("line").reset_index()
    pairs = lines.merge(static, on="method")
    shared = [
        len(set(own) & set(line)) if set(own) <= set(line) else -1
        for own, line in zip(pairs["static_settings"], pairs["settings"], strict=True)
    ]
    pairs = pairs.assign(shared=shared)[np.array(shared, int) >= 0]
    pairs = pairs.sort_values(
        ["line", "target_bits", "shared"], ascending=[True, True, False], kind="stable"
    ).drop_duplicates(["line", "target_bits"])
    pairs = pairs.merge(dynamic, how="left", on=[*LINE, "target_bits"])
    pairs = pairs.join(_cheapest(pairs, _points(dynamic)))
    pairs = pairs.assign(
        label=pairs["settings"].map(", ".join),
        difference=pairs["dynamic_top1"] - pairs["static_top1"],
        difference_std=np.hypot(pairs["dynamic_top1_seeds"], pairs["static_top1_seeds"]),
        cost_ratio=pairs["dynamic_bit_flops"] / pairs["static_bit_flops"],
        same_accuracy_cost_ratio=pairs["cheapest"] / pairs["static_bit_flops"],
    )
    return pairs[pairs["dynamic_top1"].notna() | (pairs["same_accuracy_cost_ratio"] < 1)]


KEPT = {"static": ("method", "target_bits"), "dynamic": (*LINE, "target_bits")}


def _points(dynamic: pd.DataFrame) -> pd.DataFrame:
    """Of every line: its groups, and their curves, with where each point is."""
    rows = []
    for g in dynamic.itertuples():
        at = f"target {g.target_bits:g}"
        rows.append((g.method, g.settings, g.dynamic_bit_flops, at, g.dynamic_top1))
        for point in g.dynamic_curve:
            rows.append((g.method, g.settings, point.bit_flops, f"{at}, its curve", point.top1))
    return pd.DataFrame(rows, columns=[*LINE, "cheapest", "same_accuracy_at", "top1"])


def _cheapest(pairs: pd.DataFrame, points: pd.DataFrame) -> pd.DataFrame:
    """The cheapest point of each pair's line that has at least the static accuracy.

    It is read off test metrics, so over many points of a curve it is a little optimistic.
    """
    reached = pairs.rename_axis("pair").reset_index().merge(points, on=LINE)
    reached = reached[reached["top1"] >= reached["static_top1"]]
    reached = reached.sort_values(["cheapest", "same_accuracy_at"]).drop_duplicates("pair")
    return reached.set_index("pair")[["cheapest", "same_accuracy_at"]]
