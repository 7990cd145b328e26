"""Observers: from what a tensor holds to the range in which it is quantized."""

from __future__ import annotations

from functools import partial

from dqnet.errors import UserError, unknown_name
from dqnet.quantizers.observers.base import Observer
from dqnet.quantizers.observers.kl import KL
from dqnet.quantizers.observers.mse import MeanSquaredError
from dqnet.quantizers.observers.percentile import Percentile
from dqnet.quantizers.observers.span import MinMax, MovingAverage

OBSERVERS: dict[str, type[Observer]] = {
    "min_max": MinMax,
    "moving_average": MovingAverage,
    "percentile": Percentile,
    "mse": MeanSquaredError,
    "kl": KL,
}


def observer_factory(name: str, momentum: float, percentile: float) -> partial[Observer]:
    """What makes an observer, of a name and what its kind needs.

    Raises:
        UserError: for an unknown name, or a number that is out of range.
    """
    if name not in OBSERVERS:
        raise unknown_name("observer", name, OBSERVERS)
    if not 0 <= momentum < 1:
        raise UserError(f"momentum {momentum} must be at least 0 and below 1")
    if not 50 < percentile <= 100:
        raise UserError(f"percentile {percentile} must be above 50 and at most 100")
    options = {"moving_average": {"momentum": momentum}, "percentile": {"percentile": percentile}}
    return partial(OBSERVERS[name], **options.get(name, {}))


__all__ = ["OBSERVERS", "Observer", "observer_factory"]
