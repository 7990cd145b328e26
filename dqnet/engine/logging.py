"""Where a run's progress goes: ``metrics.jsonl`` always, Weights & Biases when asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from dqnet.config import LoggerConfig
from dqnet.engine.evaluate import Evaluation
from dqnet.engine.files import write_atomically
from dqnet.errors import UserError, unknown_name

LOGGERS = ("none", "wandb")
WANDB_MODES = ("offline", "online", "disabled")


def check_logger(config: LoggerConfig) -> None:
    """Raises UserError for a logger or a mode that does not exist."""
    if config.name not in LOGGERS:
        raise unknown_name("logger", config.name, LOGGERS)
    if config.mode not in WANDB_MODES:
        raise unknown_name("logger.mode", config.mode, WANDB_MODES)


class MetricsFile:
    """``metrics.jsonl``: one JSON object per epoch, and none twice."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def keep_until(self, epochs: int) -> None:
        """Drops what was written after the checkpoint that a run continues from."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        # A line that was cut off while it was written belongs to an epoch that runs again.
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["epoch"] < epochs]
        text = "".join(line + "\n" for line in kept)
        write_atomically(self.path, lambda temporary: temporary.write_text(text) and None)

    def append(self, metrics: dict[str, Any]) -> None:
        """Adds one epoch."""
        with self.path.open("a") as file:
            file.write(json.dumps(metrics) + "\n")


class WandbLogger:
    """One Weights & Biases run, offline unless told otherwise.

    Args:
        config: its project, mode and group.
        run_config: the run's configuration, stored with it.
        folder: the run folder; W&B's files go below it.
        run_id: the identity of a run that is being continued.
    """

    def __init__(
        self, config: LoggerConfig, run_config: dict[str, Any], folder: Path, run_id: str | None
    ) -> None:
        import wandb  # a second's import, spared where it is not used

        self._wandb = wandb
        try:
            self.run = wandb.init(
                project=config.project,
                group=config.group,
                mode=config.mode,
                config=run_config,
                dir=folder,
                name=folder.name,
                id=run_id,
                resume="allow" if run_id else None,
                # A job of the same sweep that failed has left its run open.
                reinit="finish_previous",
                settings=wandb.Settings(silent=True),
            )
        except wandb.errors.Error as error:
            raise UserError(f"wandb could not start: {error}") from error

    @property
    def run_id(self) -> str:
        return self.run.id

    def log(self, metrics: dict[str, Any], evaluation: Evaluation) -> None:
        """An epoch's metrics, and the histogram of widths of every routed layer."""
        record = {key: value for key, value in metrics.items() if value is not None}
        if evaluation.widths:
            edges = np.array([*evaluation.widths, evaluation.widths[-1] + 1]) - 0.5
            for name, counts in zip(
                evaluation.routed_names, evaluation.histogram.numpy(), strict=True
            ):
                record[f"widths/{name}"] = self._wandb.Histogram(np_histogram=(counts, edges))
            record["bit_flops_per_image"] = self._wandb.Histogram(evaluation.cost.numpy())
        self.run.log(record, step=metrics["epoch"])

    def finish(self, summary: dict[str, Any]) -> None:
        """Stores the final figures and closes the run."""
        self.run.summary.update(summary)
        self.run.finish()
