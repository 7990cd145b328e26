"""What eval.py measured of a run: other budgets, controls, and the cascades that it begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from dqnet.report.runs import reading
from dqnet.runtime.files import read_json

NO_CURVE = pd.DataFrame(columns=["bit_flops", "top1"], dtype=float)
#: what is known of a threshold: its name in cascade.json, and in the tables
POINT = {
    **{name: name for name in ("share", "bit_flops", "bit_flops_total", "top1")},
    "instance_gain.points": "gain",
    "instance_gain.low": "gain_low",
    "instance_gain.high": "gain_high",
}


def read_evaluation(folder: Path) -> dict[str, Any]:
    """The test part measured with the checkpoint of the run's summary; otherwise nothing counts.

    Returns:
        ``curve``, the rows of ``curve.csv`` by ascending cost, empty without one. ``gain``,
        ``gain_low`` and ``gain_high``: the instance gain of the controls at the run's own budget,
        in points, and its interval; ``benefit``, ``benefit_low`` and ``benefit_high``: those over
        the best fixed routing; missing if they were not run. ``costs`` of the mean image at that
        budget, by cost model; missing if they were not measured.

    Raises:
        UserError: if a file is broken.
    """
    path = folder / "eval.json"
    with reading(path):
        evaluation = read_json(path) if path.exists() else {}
        if not _is_own(evaluation.get("split", "test"), evaluation.get("checkpoint", "best.pt")):
            return {"curve": NO_CURVE}
        controls = evaluation.get("controls") or {}
        found = {}
        if evaluation.get("budget") is None:
            found = {"costs": evaluation["costs"]} if "costs" in evaluation else {}
            for name, key in (("gain", "instance_gain"), ("benefit", "benefit")):
                if key in controls:
                    ends = {"": "points", "_low": "low", "_high": "high"}
                    found |= {name + end: controls[key][of] for end, of in ends.items()}
    path = folder / "curve.csv"
    if not path.exists():
        return found | {"curve": NO_CURVE}
    with reading(path):
        curve = pd.read_csv(path, dtype=str)[list(NO_CURVE)].astype(float)  # exactly
        return found | {"curve": curve.sort_values("bit_flops", ignore_index=True)}


def read_cascade(folder: Path) -> pd.DataFrame | None:
    """``cascade.json`` of a run folder, the run being the first pass.

    Returns:
        A row per threshold, by ascending cost: the ``share`` of images that run twice, costs, top-1
        in %, and the instance gain with its interval. In every row ``first`` and ``second``, the
        passes' widths and what they were to cost (``2/3/4 at 3``), the second one's with what it
        sees and how it counts; and ``full_precision``, Bit-FLOPs of the second network's
        full-precision layers. ``None`` without a file, or with one of another part of the data or
        of another checkpoint than the run's summary.

    Raises:
        UserError: if it is broken.
    """
    path = folder / "cascade.json"
    if not path.exists():
        return None
    with reading(path):
        content = read_json(path)
        first, second = content["first"], content["second"]
        if not _is_own(content["split"], first["checkpoint"]):
            return None
        points = pd.json_normalize(content["points"])[list(POINT)].rename(columns=POINT)
        return points.sort_values("bit_flops").assign(
            first=_label(first),
            second=_label(second) + _how(content),
            full_precision=second["bit_flops_total"] - second["bit_flops"],
        )


def _is_own(split: str, checkpoint: str) -> bool:
    return split == "test" and Path(checkpoint).name == "best.pt"


def _how(content: dict[str, Any]) -> str:
    """What a second pass sees, and whether its answer is averaged; older files lack both."""
    view, combine = content.get("view"), content.get("combine", "replace")
    return "".join([f" {view}" if view else "", f" {combine}" if combine != "replace" else ""])


def _label(network: dict[str, Any]) -> str:
    label = "/".join(map(str, network["widths"]))
    if len(network["widths"]) == 1:
        return label
    bits = network["target_bits"] if network["budget"] is None else network["budget"]
    return f"{label} at {bits:g}"
