"""Cascades that eval.py measured, against static networks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dqnet.engine.files import read_json
from dqnet.errors import UserError

if TYPE_CHECKING:
    from dqnet.report.compare.groups import Group


@dataclass(frozen=True)
class CascadePoint:
    """One threshold.

    Attributes:
        share: of the images that ran twice, in [0, 1].
        bit_flops: of the mean image.
        bit_flops_total: the same with full-precision layers.
        top1: %.
        gain, low, high: the instance gain in points, and its interval.
    """

    share: float
    bit_flops: float
    bit_flops_total: float
    top1: float
    gain: float
    low: float
    high: float


@dataclass(frozen=True)
class CascadeCurve:
    """A run as the first pass of a cascade, at all thresholds.

    Attributes:
        first, second: the passes' widths, and what they were to cost: ``2/3/4 at 3``.
        full_precision: Bit-FLOPs of the second network's full-precision layers.
        points: by ascending cost.
    """

    first: str
    second: str
    full_precision: float
    points: tuple[CascadePoint, ...]


@dataclass(frozen=True)
class AgainstStatic:
    """A cascade and a static network of its method, dearer and better than its first pass alone.

    Attributes:
        method: the quantizer.
        cascade: the cascade.
        static: the static runs.
        reached: the cheapest point that is as accurate; ``None`` if there is none.
    """

    method: str
    cascade: CascadeCurve
    static: Group
    reached: CascadePoint | None

    @property
    def cost_ratio(self) -> float | None:
        """Cost at which the cascade is as accurate as the static network, over the static cost."""
        return self.reached and self.reached.bit_flops / self.static.mean("bit_flops")

    @property
    def total_ratio(self) -> float | None:
        """The same with full-precision layers, those of the second network for the static one."""
        if self.reached is None:
            return None
        static = self.static.mean("bit_flops") + self.cascade.full_precision
        return self.reached.bit_flops_total / static


def read_cascade(folder: Path) -> CascadeCurve | None:
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
        points = [
            CascadePoint(
                *(point[name] for name in ("share", "bit_flops", "bit_flops_total", "top1")),
                *(point["instance_gain"][name] for name in ("points", "low", "high")),
            )
            for point in content["points"]
        ]
        full_precision = second["bit_flops_total"] - second["bit_flops"]
        passes = _label(first), _label(second)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not what eval.py writes: {error!r}") from error
    points.sort(key=lambda point: point.bit_flops)
    return CascadeCurve(*passes, full_precision, tuple(points))


def against_static(groups: Iterable[Group]) -> list[AgainstStatic]:
    """Every cascade beside each static network that it is meant to replace."""
    groups = list(groups)
    found = []
    for g in groups:
        for cascade in g.cascades:
            statics = [s for s in groups if s.kind == "static" and s.method == g.method]
            for static in sorted(statics, key=lambda s: s.mean("bit_flops")):
                alone = cascade.points[0]
                dearer = static.mean("bit_flops") > alone.bit_flops
                if dearer and static.mean("top1") > alone.top1:
                    reached = _reach(cascade.points, static.mean("top1"))
                    found.append(AgainstStatic(g.method, cascade, static, reached))
    return found


def _reach(points: Sequence[CascadePoint], top1: float) -> CascadePoint | None:
    """The cheapest point with at least this accuracy; optimistic, as in a trade-off curve."""
    return next((point for point in points if point.top1 >= top1), None)


def _label(network: dict[str, Any]) -> str:
    label = "/".join(map(str, network["widths"]))
    if len(network["widths"]) == 1:
        return label
    bits = network["target_bits"] if network["budget"] is None else network["budget"]
    return f"{label} at {bits:g}"
