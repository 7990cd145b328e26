"""The controls of ``eval.json`` as a table: is the routing instance-aware at all?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: what each control is
MEANING = {
    "own": "Every image runs with the routing that the controller chose for it.",
    "shuffled": "Every image runs with the routing of another one: the same costs and "
    "frequencies, only the match between image and routing is broken.",
    "random": "Every layer's width is drawn by the model's own frequencies: what layers have in "
    "common is broken too.",
    "fixed": "Every image runs each layer at that layer's most frequent width.",
    "single": "Every routed layer runs at this width, for all images.",
}


@dataclass(frozen=True)
class Control:
    """One row: means over ``draws`` repetitions; ``low`` and ``high`` are their extreme top-1."""

    name: str
    meaning: str
    draws: int
    top1: float
    low: float
    high: float
    loss: float
    bit_flops: float


def control_rows(controls: dict[str, Any]) -> list[Control]:
    """The rows that there are measurements for, the model's own routing first."""
    rows = [
        _row(name, MEANING[name], controls[name])
        for name in ("own", "shuffled", "random", "fixed")
        if controls.get(name)
    ]
    for width, measured in (controls.get("single") or {}).items():
        rows.append(_row(f"all at {width} bits", MEANING["single"], measured))
    return rows


def _row(name: str, meaning: str, measured: dict[str, float] | list[dict[str, float]]) -> Control:
    draws = measured if isinstance(measured, list) else [measured]
    top1 = [draw["top1"] for draw in draws]
    return Control(
        name=name,
        meaning=meaning,
        draws=len(draws),
        top1=sum(top1) / len(draws),
        low=min(top1),
        high=max(top1),
        loss=sum(draw["loss"] for draw in draws) / len(draws),
        bit_flops=sum(draw["bit_flops"] for draw in draws) / len(draws),
    )
