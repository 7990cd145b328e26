"""When a checkpoint is due within an epoch."""

from __future__ import annotations

import time

from dqnet.config import TrainerConfig
from dqnet.errors import UserError


class CheckpointInterval:
    """Every ``checkpoint_steps`` steps, every ``checkpoint_minutes`` minutes, or both.

    Raises:
        UserError: if one of them is not above 0.
    """

    def __init__(self, config: TrainerConfig) -> None:
        for key in ("checkpoint_steps", "checkpoint_minutes"):
            value = getattr(config, key)
            if value is not None and not value > 0:
                raise UserError(f"trainer.{key} {value:g} must be above 0, or null for none")
        self._steps = config.checkpoint_steps
        self._minutes = config.checkpoint_minutes
        self.restart()

    def restart(self) -> None:
        """A checkpoint has just been written."""
        self._step = 0
        self._saved = time.monotonic()

    def step(self) -> bool:
        """Called after every step: whether a checkpoint is due."""
        self._step += 1
        if self._steps is not None and self._step >= self._steps:
            return True
        minutes = (time.monotonic() - self._saved) / 60
        return self._minutes is not None and minutes >= self._minutes
