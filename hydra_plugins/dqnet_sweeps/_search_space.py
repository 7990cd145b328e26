"""Hydra's ways to write several values, as Optuna's distributions."""

from __future__ import annotations

from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)


def distribution(override: Override) -> BaseDistribution:
    """What a sweep override asks for.

    ``interval(0.1, 1)`` is continuous, or integer if both ends are; ``tag(log, interval(...))``
    logarithmic; anything else is a choice between its values, which may be lists.
    """
    value = override.value()
    if isinstance(value, IntervalSweep):
        log = "log" in value.tags
        if isinstance(value.start, int) and isinstance(value.end, int):
            return IntDistribution(value.start, value.end, log=log)
        return FloatDistribution(float(value.start), float(value.end), log=log)
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def as_override(name: str, value: Any) -> str:
    """A value as an override, to four digits: it names a folder, and can be typed again."""
    return f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
