"""Static networks against dynamic ones, at equal cost and equal accuracy, and against cascades."""

from __future__ import annotations

import numpy as np
import pandas as pd

LINE = ["method", "settings"]
#: columns that keep their names beside those of the other kind
KEPT = {"static": ["method", "target_bits"], "dynamic": [*LINE, "target_bits"]}
#: columns of pairs.csv; empty where a static network has no dynamic one of its target
PAIR_COLUMNS = [
    *("method", "label", "target_bits", "static_label", "static_runs", "static_top1"),
    *("static_bit_flops", "dynamic_widths", "dynamic_runs", "dynamic_top1", "dynamic_bit_flops"),
    *("difference", "difference_std", "cost_ratio", "same_accuracy_cost_ratio", "same_accuracy_at"),
]
#: columns of cascades.csv
CASCADE_COLUMNS = [
    *("method", "first", "second", "static_bits", "static_top1", "static_bit_flops", "top1"),
    *("bit_flops", "cost_ratio", "total_ratio", "share", "gain", "gain_low", "gain_high"),
]


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
    pairs = dynamic[LINE].drop_duplicates().rename_axis("line").reset_index()
    pairs = pairs.merge(static, on="method")
    pairs["shared"] = [
        len(own) if set(own) <= set(line) else np.nan
        for own, line in zip(pairs["static_settings"], pairs["settings"], strict=True)
    ]
    order = ["line", "target_bits", "shared"]
    pairs = pairs.dropna(subset="shared").sort_values(order, ascending=[True, True, False])
    pairs = pairs.drop_duplicates(order[:2]).merge(dynamic, how="left", on=[*LINE, "target_bits"])
    reached = pairs.rename_axis("pair").reset_index().merge(_points(dynamic), on=LINE)
    reached = reached[reached["top1"] >= reached["static_top1"]]
    # Read off test metrics, so over many points of a curve it is a little optimistic.
    cheapest = reached.sort_values(["cheapest", "same_accuracy_at"]).drop_duplicates("pair")
    pairs = pairs.join(cheapest.set_index("pair")[["cheapest", "same_accuracy_at"]])
    pairs = pairs.assign(
        label=pairs["settings"].map(", ".join),
        difference=pairs["dynamic_top1"] - pairs["static_top1"],
        difference_std=np.hypot(pairs["dynamic_top1_seeds"], pairs["static_top1_seeds"]),
        cost_ratio=pairs["dynamic_bit_flops"] / pairs["static_bit_flops"],
        same_accuracy_cost_ratio=pairs["cheapest"] / pairs["static_bit_flops"],
    )
    return pairs[pairs["dynamic_top1"].notna() | (pairs["same_accuracy_cost_ratio"] < 1)]


def _points(dynamic: pd.DataFrame) -> pd.DataFrame:
    """Of every line: its groups, and their curves, with where each point is."""
    rows = []
    for g in dynamic.itertuples():
        at = f"target {g.target_bits:g}"
        rows.append((g.method, g.settings, g.dynamic_bit_flops, at, g.dynamic_top1))
        for point in g.dynamic_curve.itertuples():
            rows.append((g.method, g.settings, point.bit_flops, f"{at}, its curve", point.top1))
    return pd.DataFrame(rows, columns=[*LINE, "cheapest", "same_accuracy_at", "top1"])


def against_static(groups: pd.DataFrame) -> pd.DataFrame:
    """Every cascade beside each static network of its method that it is meant to replace.

    Those are more expensive and more accurate than its first pass alone.

    Returns:
        ``CASCADE_COLUMNS``. From ``top1`` on they are of the cheapest point that is as accurate as
        the static network, which is a little optimistic, as in a trade-off curve; they are NaN if
        there is none. ``cost_ratio`` is its cost over the static one, ``total_ratio`` the same with
        full-precision layers, those of the second network for the static one.
    """
    static = groups[groups["kind"] == "static"].sort_values("bit_flops", kind="stable")
    rows = []
    for g in groups.itertuples():
        for points in g.cascades:
            alone = points.iloc[0]
            rivals = static[static["method"] == g.method]
            rivals = rivals[rivals["bit_flops"] > alone["bit_flops"]]
            for rival in rivals[rivals["top1"] > alone["top1"]].itertuples():
                reached = points[points["top1"] >= rival.top1]
                point = reached.iloc[0] if len(reached) else pd.Series(np.nan, points.columns)
                total = rival.bit_flops + alone["full_precision"]
                rows.append(
                    point.to_dict()
                    | {"method": g.method, "first": alone["first"], "second": alone["second"]}
                    | {"static_bits": rival.target_bits, "static_top1": rival.top1}
                    | {"static_bit_flops": rival.bit_flops}
                    | {"cost_ratio": point["bit_flops"] / rival.bit_flops}
                    | {"total_ratio": point["bit_flops_total"] / total}
                )
    return pd.DataFrame(rows, columns=CASCADE_COLUMNS)
