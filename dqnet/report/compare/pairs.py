"""Static against dynamic: at equal cost, and at equal accuracy."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from dqnet.report.compare.groups import Group


@dataclass(frozen=True)
class Cheapest:
    """The cheapest point of a dynamic line that reaches an accuracy.

    Attributes:
        bit_flops: cost of the mean image there.
        at: the target of the runs, and whether it is a point of their trade-off curve.
    """

    bit_flops: float
    at: str


@dataclass(frozen=True)
class Pair:
    """A static network and the dynamic line of its method.

    Attributes:
        static: the static runs.
        settings: of the dynamic line.
        dynamic: the runs of the line with the same target; ``None`` if there are none.
        cheapest: where the line reaches the static accuracy; ``None`` if it does not.
    """

    static: Group
    settings: tuple[str, ...]
    dynamic: Group | None
    cheapest: Cheapest | None

    @property
    def difference(self) -> float | None:
        """Top-1 of dynamic less static, points, of the means over seeds."""
        if self.dynamic is None:
            return None
        return self.dynamic.mean("top1") - self.static.mean("top1")

    @property
    def difference_std(self) -> float | None:
        """Standard deviation of the difference between one run and one run; needs two of each.

        The runs are taken as independent: an equal seed means the same order of images, not the
        same noise in the result.
        """
        if self.dynamic is None:
            return None
        spreads = self.dynamic.std("top1"), self.static.std("top1")
        return None if None in spreads else math.hypot(*spreads)

    @property
    def cost_ratio(self) -> float | None:
        """Bit-FLOPs of the mean image, dynamic over static."""
        if self.dynamic is None:
            return None
        return self.dynamic.mean("bit_flops") / self.static.mean("bit_flops")

    @property
    def same_accuracy_ratio(self) -> float | None:
        """Cost at which the line is as accurate as the static network, over the static cost."""
        if self.cheapest is None:
            return None
        return self.cheapest.bit_flops / self.static.mean("bit_flops")


def pair(groups: Iterable[Group]) -> list[Pair]:
    """Pairs every dynamic line with each static network of its method and its settings.

    A static network has no use for some settings of a dynamic one, the controller's for instance,
    so it need not have them. Those it does have the line must have as well; the recipe,
    ``experiment=``, is left to each kind. Of several, the one that shares most settings is taken.
    With no dynamic runs of equal target there is a pair only if another target beats the static
    network: as accurate and cheaper.
    """
    groups = list(groups)
    statics = [g for g in groups if g.kind == "static"]
    lines: dict[tuple[str, tuple[str, ...]], list[Group]] = defaultdict(list)
    for g in groups:
        if g.kind == "dynamic":
            lines[g.method, g.settings].append(g)
    pairs = []
    for (method, settings), line in lines.items():
        targets: dict[float, list[Group]] = defaultdict(list)
        for static in statics:
            if static.method == method and _needed(static) <= set(settings):
                targets[static.target_bits].append(static)
        for target, candidates in sorted(targets.items()):
            static = max(candidates, key=lambda g: len(set(g.settings) & set(settings)))
            cheapest = reach(line, static.mean("top1"))
            equal = [g for g in line if g.target_bits == target]
            pairs += [Pair(static, settings, g, cheapest) for g in equal]
            other = Pair(static, settings, None, cheapest)
            if not equal and (other.same_accuracy_ratio or 1) < 1:
                pairs.append(other)
    return pairs


def reach(line: Iterable[Group], top1: float) -> Cheapest | None:
    """The cheapest point of a line, its groups and their curves, with at least this accuracy.

    It is read off test figures, so over many points of a curve it is a little optimistic.
    """
    points = []
    for g in line:
        at = f"target {g.target_bits:g}"
        points.append((g.mean("bit_flops"), at, g.mean("top1")))
        points += [(point.bit_flops, f"{at}, its curve", point.top1) for point in g.curve()]
    reached = [(cost, at) for cost, at, accuracy in points if accuracy >= top1]
    return Cheapest(*min(reached)) if reached else None


def _needed(static: Group) -> set[str]:
    return {setting for setting in static.settings if not setting.startswith("experiment=")}
