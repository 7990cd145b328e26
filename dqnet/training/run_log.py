"""Where a run's progress goes: ``metrics.jsonl`` always, Weights & Biases when asked."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from dqnet.measurement import Evaluation
from dqnet.processes import is_main
from dqnet.training.logging import MetricsFile, WandbLogger
from dqnet.training.run_state import RunState


class RunLog:
    """Continues both after the epochs that a run has done, and gives it its W&B identity.

    Args:
        run: the run; only the main process's is known to W&B.
    """

    def __init__(self, run: RunState) -> None:
        self._metrics = MetricsFile(run.folder / "metrics.jsonl")
        self._metrics.keep_until(run.done)
        self._wandb, config = None, run.config
        if config.logger.name == "wandb" and is_main():
            self._wandb = WandbLogger(config.logger, asdict(config), run.folder, run.wandb_id)
            self._wandb.continue_after(run.done)
        run.wandb_id = None if self._wandb is None else self._wandb.run_id

    def append(self, metrics: dict[str, Any], evaluation: Evaluation) -> None:
        """Adds an epoch."""
        self._metrics.append(metrics)
        if self._wandb is not None:
            self._wandb.log(metrics, evaluation)

    def stop(self, status: int) -> None:
        """Closes the W&B run as one that ended early, with the process's exit status."""
        if self._wandb is not None:
            self._wandb.stop(status)

    def finish(self, summary: dict[str, Any]) -> None:
        """Stores the final figures and closes the W&B run."""
        if self._wandb is not None:
            self._wandb.finish(summary)
