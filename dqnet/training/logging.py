"""Where a run's progress goes: ``metrics.jsonl`` always, Weights & Biases when asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from dqnet.config import LoggerConfig
from dqnet.errors import UserError, unknown_name
from dqnet.measurement import Evaluation
from dqnet.runtime.files import append_line, write_atomically

LOGGERS = ("none", "wandb")
WANDB_MODES = ("offline", "online", "disabled")
#: of the histogram of Bit-FLOPs, W&B's own number
COST_BINS = 64


def check_logger(config: LoggerConfig) -> None:
    """Raises UserError for a logger or a mode that does not exist."""
    if config.name not in LOGGERS:
        raise unknown_name("logger", config.name, LOGGERS)
    if config.mode not in WANDB_MODES:
        raise unknown_name("logger.mode", config.mode, WANDB_MODES)


class MetricsFile:
    """``metrics.jsonl``, or one like it: a JSON object per epoch, and none twice."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def keep_until(self, epochs: int) -> None:
        """Drops what was written after the checkpoint that a run continues from."""
        # A line that was cut off while it was written belongs to an epoch that runs again.
        kept = [line for line in self._lines() if json.loads(line)["epoch"] < epochs]
        text = "".join(kept)
        write_atomically(self.path, lambda temporary: temporary.write_text(text, "utf-8") and None)

    def append(self, metrics: dict[str, Any]) -> None:
        """Adds one epoch."""
        append_line(self.path, json.dumps(metrics))

    def read(self) -> list[dict[str, Any]]:
        """All epochs."""
        return [json.loads(line) for line in self._lines()]

    def _lines(self) -> list[str]:
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]


class WandbLogger:
    """One Weights & Biases run, offline unless told otherwise.

    A run that was killed and continued has one unbroken history: what W&B is told is kept in
    ``wandb.jsonl`` too, and told again where it was lost with the process, or, offline, where it is
    in the files of an earlier start, of which an upload takes one.

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
        self._folder = folder
        self._told = MetricsFile(folder / "wandb.jsonl")

    def continue_after(self, epochs: int) -> None:
        """Tells W&B again what it may have lost of the first ``epochs`` epochs."""
        self._told.keep_until(epochs)
        for record in self._told.read():
            self._tell(record)
        # Offline, this start's files now hold all of the run and those of earlier ones a part.
        own = Path(self.run.dir).parent.name
        for path in (self._folder / "wandb").glob(f"offline-run-*-{self.run_id}"):
            if path.name != own:
                shutil.rmtree(path)

    @property
    def run_id(self) -> str:
        return self.run.id

    def log(self, metrics: dict[str, Any], evaluation: Evaluation) -> None:
        """An epoch's metrics, and the histogram of widths of every routed layer."""
        record = {key: value for key, value in metrics.items() if value is not None}
        histograms = {}
        if evaluation.widths:
            widths = evaluation.widths
            if not all(isinstance(width, int) for width in widths):
                widths = tuple(range(len(widths)))  # by their place
            edges = [width - 0.5 for width in (*widths, widths[-1] + 1)]
            for name, counts in zip(
                evaluation.routed_names, evaluation.histogram.tolist(), strict=True
            ):
                histograms[f"widths/{name}"] = counts, edges
            counts, edges = np.histogram(evaluation.cost.numpy(), bins=COST_BINS)
            histograms["bit_flops_per_image"] = counts.tolist(), edges.tolist()
        record["histograms"] = histograms
        self._told.append(record)
        self._tell(record)

    def finish(self, summary: dict[str, Any]) -> None:
        """Stores the final figures and closes the run."""
        self.run.summary.update(summary)
        self.run.finish()

    def stop(self, status: int) -> None:
        """Closes the run as one that ended early, with the process's exit status."""
        self.run.finish(exit_code=status)

    def _tell(self, record: dict[str, Any]) -> None:
        if record["epoch"] < self.run.step:  # W&B has it already
            return
        histograms = {
            name: self._wandb.Histogram(np_histogram=pair)
            for name, pair in record["histograms"].items()
        }
        metrics = {key: value for key, value in record.items() if key != "histograms"}
        # Committed at once: otherwise an epoch would wait for the next one.
        self.run.log(metrics | histograms, step=record["epoch"], commit=True)
