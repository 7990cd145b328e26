"""Runs of one setting over several seeds, told apart by what was typed to start them."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dqnet.report.compare.cascades import CascadeCurve
from dqnet.report.runs import CurvePoint, Run

#: overrides that never tell two lines apart: those with a column of their own, those that say
#: where a run was made and not what it is, and the sweep it was part of; epochs are taken from the
#: result, as a recipe or a sweep may set them untyped and results of other lengths do not compare
NOT_IN_LABEL = re.compile(
    r"seed=|quant=|quant\.(quantizer|widths)=|loss\.target_bits=|data\.(root|workers|download)="
    r"|model\.checkpoint_path=|trainer\.(device|progress|epochs|checkpoint_\w+)="
    r"|(logger|hydra|sweep)\b"
)
#: of a configuration: where a run was made, which counts only if nothing else explains that a seed
#: comes twice
PATHS = ("data.root", "model.checkpoint_path")
KINDS = ("float", "static", "dynamic")


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed, and in where they were made.

    Attributes:
        settings: the overrides, epochs, and what else makes runs differ that were started by the
            same overrides; less those that all runs of the method have; sorted. With the method
            they name the line of the figure that the group is a point of.
    """

    method: str
    kind: str
    widths: tuple[int, ...]
    target_bits: float | None
    settings: tuple[str, ...]
    runs: tuple[Run, ...]

    @property
    def label(self) -> str:
        """The settings, for people."""
        return ", ".join(self.settings)

    @property
    def cascades(self) -> list[CascadeCurve]:
        """Those that its runs are the first pass of."""
        return [run.cascade for run in self.runs if run.cascade is not None]

    def mean(self, figure: str) -> float | None:
        """Mean over seeds of a figure of :class:`~dqnet.report.runs.Run`; ``None`` without."""
        values = self._values(figure)
        return statistics.fmean(values) if values else None

    def std(self, figure: str) -> float | None:
        """Its sample standard deviation; ``None`` for fewer than two seeds."""
        values = self._values(figure)
        return statistics.stdev(values) if len(values) > 1 else None

    def curve(self) -> tuple[CurvePoint, ...]:
        """The mean trade-off curve, by ascending cost; empty unless every run has one.

        Every run has budgets of its own, so the others are read off by straight lines between
        theirs, at the costs of the first run that all of them reach.
        """
        curves = [run.curve for run in self.runs]
        if len(curves) == 1 or not all(curves):  # one seed's curve beside a mean is no mean
            return curves[0] if len(curves) == 1 else ()
        first = max(curve[0].bit_flops for curve in curves)
        last = min(curve[-1].bit_flops for curve in curves)
        costs = [point.bit_flops for point in curves[0] if first <= point.bit_flops <= last]
        top1 = [
            np.interp(costs, [p.bit_flops for p in curve], [p.top1 for p in curve])
            for curve in curves
        ]
        means = np.mean(top1, axis=0).tolist()
        return tuple(CurvePoint(*point) for point in zip(costs, means, strict=True))

    def _values(self, figure: str) -> list[float]:
        values = [getattr(run, figure) for run in self.runs]
        return [value for value in values if value is not None]


def group(runs: Iterable[Run]) -> list[Group]:
    """Groups runs over seeds, ordered by method, settings, kind and target."""
    runs = list(runs)
    typed = {
        run.folder: distinctive(run.overrides) | {f"trainer.epochs={run.epochs}"} for run in runs
    }
    for method in {run.method for run in runs}:
        of_method = [run for run in runs if run.method == method]
        for key in _untyped(_by_setting(of_method, typed)):
            for run in of_method:
                others = {s for s in typed[run.folder] if not s.startswith(f"{key}=")}
                typed[run.folder] = frozenset(others | {f"{key}={run.config.get(key)}"})
    common = {
        method: frozenset.intersection(*(typed[run.folder] for run in runs if run.method == method))
        for method in {run.method for run in runs}
    }
    own = {run.folder: typed[run.folder] - common[run.method] for run in runs}
    groups = [
        Group(*key, tuple(sorted(of, key=lambda run: run.seed)))
        for key, of in _by_setting(runs, own).items()
    ]
    return sorted(
        groups,
        key=lambda g: (
            (g.method != "float", g.method, g.settings),
            (KINDS.index(g.kind), g.target_bits or 0, g.widths),
        ),
    )


def _by_setting(runs: Iterable[Run], settings: Mapping[Path, Set[str]]) -> dict[tuple, list[Run]]:
    members: dict[tuple, list[Run]] = defaultdict(list)
    for run in runs:
        own = tuple(sorted(settings[run.folder]))
        members[run.method, run.kind, run.widths, run.target_bits, own].append(run)
    return members


def _untyped(members: Mapping[tuple, list[Run]]) -> list[str]:
    """Names of settings in which runs differ that were started by the same overrides.

    The sweep or the recipe had changed in between. A name that a run's record lacks tells nothing,
    being of another version.
    """
    found: set[str] = set()
    for runs in members.values():
        names = set.intersection(*(set(run.config) for run in runs))
        differing = {name for name in names if len({str(run.config[name]) for run in runs}) > 1}
        own = {name for name in differing if not NOT_IN_LABEL.match(f"{name}=")}
        if not own and len({run.seed for run in runs}) < len(runs):
            own = differing.intersection(PATHS)
        found |= own
    return sorted(found)


def distinctive(overrides: Iterable[str]) -> frozenset[str]:
    """The overrides that can tell two lines apart.

    A recipe for static and one for dynamic networks, ``experiment=NAME_static`` and
    ``NAME_dynamic``, are the same line, so the ending is cut off.
    """
    names = (override.lstrip("+~") for override in overrides)
    return frozenset(
        re.sub(r"^(experiment=.*)_(static|dynamic)$", r"\1", name)
        for name in names
        if not NOT_IN_LABEL.match(name)
    )
