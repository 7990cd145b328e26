"""Settings of a training that are out of range, told before anything is loaded."""

from __future__ import annotations

from dqnet.config import TrainConfig
from dqnet.errors import UserError
from dqnet.training.logging import check_logger


def check_trainer(config: TrainConfig) -> None:
    """Raises UserError for a trainer, logger or seed setting out of range."""
    if config.trainer.epochs < 0:
        raise UserError(f"trainer.epochs {config.trainer.epochs} must not be negative")
    ema = config.trainer.ema
    if ema is not None and not 0 < ema < 1:
        raise UserError(f"trainer.ema {ema} must be in (0, 1), or null for none")
    if not 0 <= config.seed < 2**63:
        raise UserError(f"seed {config.seed} must be from 0 to 2**63 - 1")
    if config.quant.calibration.images < 1:
        raise UserError(
            f"quant.calibration.images {config.quant.calibration.images} must be at least 1"
        )
    check_logger(config.logger)
