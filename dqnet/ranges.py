"""What the numbers of a configuration may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from dqnet.config import flatten
from dqnet.errors import UserError

#: what a number must be, in words, and whether one is that
Range = tuple[str, Callable[[float], bool]]
_NOT_NEGATIVE: Range = "not be negative", lambda x: x >= 0
_ABOVE_0: Range = "be above 0", lambda x: x > 0
_ABOVE_0_OR_NULL: Range = "be above 0, or null for none", lambda x: x > 0
_AT_LEAST_1: Range = "be at least 1", lambda x: x >= 1
_SHARE: Range = "be in [0, 1]", lambda x: 0 <= x <= 1
_BELOW_1: Range = "be in [0, 1)", lambda x: 0 <= x < 1
#: of settings whose range no other module checks, by their dotted names
RANGES: dict[str, Range] = {
    "seed": ("be from 0 to 2**63 - 1", lambda x: 0 <= x < 2**63),
    "data.batch_size": _AT_LEAST_1,
    "data.size": _AT_LEAST_1,
    "data.crop_padding": _NOT_NEGATIVE,
    "data.workers": _NOT_NEGATIVE,
    "data.val_fraction": _BELOW_1,
    "data.corruption": _SHARE,
    "data.std": _ABOVE_0,
    "quant.calibration.images": _AT_LEAST_1,
    "quant.post_training.adaround": _NOT_NEGATIVE,
    "quant.post_training.images": _AT_LEAST_1,
    "quant.freeze_batch_norm": _SHARE,
    "quant.parameter_decay": _NOT_NEGATIVE,
    "loss.alpha": _NOT_NEGATIVE,
    "loss.mutual_information": _NOT_NEGATIVE,
    "loss.mutual_information_until": _SHARE,
    "loss.label_smoothing": _BELOW_1,
    "loss.distillation": _NOT_NEGATIVE,
    "prune.until": _SHARE,
    "prune.every": _AT_LEAST_1,
    "search.images": _AT_LEAST_1,
    "search.epochs": _AT_LEAST_1,
    "optim.lr": _ABOVE_0,
    "optim.momentum": _BELOW_1,
    "optim.weight_decay": _NOT_NEGATIVE,
    "optim.clip_grad": _ABOVE_0_OR_NULL,
    "optim.decay_epochs": _ABOVE_0,
    "trainer.epochs": _NOT_NEGATIVE,
    "trainer.ema": ("be in (0, 1), or null for none", lambda x: 0 < x < 1),
    "trainer.checkpoint_steps": _ABOVE_0_OR_NULL,
    "trainer.checkpoint_minutes": _ABOVE_0_OR_NULL,
}


def check_ranges(config: Any, table: str = "") -> None:
    """Raises UserError for the first number of a configuration that is out of its range.

    Args:
        config: a :class:`TrainConfig`, or the part of it that is called ``table``.
        table: the name of that part.
    """
    for name, value in flatten(asdict(config), table).items():
        if name in RANGES and value is not None:
            words, holds = RANGES[name]
            if not all(map(holds, value if isinstance(value, list) else [value])):
                raise UserError(f"{name} {value} must {words}")
