"""Where a run's progress goes: ``metrics.jsonl`` always, Weights & Biases when asked."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dqnet.config import LoggerConfig
from dqnet.errors import UserError, unknown_name
from dqnet.measurement import Evaluation
from dqnet.processes import is_main
from dqnet.runtime.files import append_line, write_text
from dqnet.training.run_state import RunState

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

    def keep_until(self, epochs: int) -> list[dict[str, Any]]:
        """Drops what was written after the checkpoint that a run continues from; returns the rest.

        A line that was cut off while it was written belongs to an epoch that runs again.
        """
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        kept = [line for line in lines if json.loads(line)["epoch"] < epochs]
        write_text(self.path, "".join(kept))
        return [json.loads(line) for line in kept]

    def append(self, metrics: dict[str, Any]) -> None:
        """Adds one epoch."""
        append_line(self.path, json.dumps(metrics))


def start_wandb(
    config: LoggerConfig, run_config: dict[str, Any], folder: Path, run_id: str | None
) -> Any:
    """Starts a Weights & Biases run and returns it; offline unless told otherwise.

    Args:
        config: its project, mode and group.
        run_config: the run's configuration, stored with it.
        folder: the run folder; W&B's files go below it.
        run_id: the identity of a run that is being continued.
    """
    import wandb  # a second's import, spared where it is not used

    try:
        return wandb.init(
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


class RunLog:
    """``metrics.jsonl`` and W&B, both continued after the epochs that a run has done.

    A W&B run that was killed and continued has one unbroken history: what W&B is told is kept in
    ``wandb.jsonl`` too, and told again where it was lost with the process, or, offline, where it is
    in the files of an earlier start, of which an upload takes one.

    Args:
        run: the run, which gets its W&B identity; only the main process's is known to W&B.
    """

    def __init__(self, run: RunState) -> None:
        self._metrics = MetricsFile(run.folder / "metrics.jsonl")
        self._metrics.keep_until(run.done)
        self._wandb, config = None, run.config
        if config.logger.name == "wandb" and is_main():
            self._wandb = start_wandb(config.logger, asdict(config), run.folder, run.wandb_id)
            self._told = MetricsFile(run.folder / "wandb.jsonl")
            for record in self._told.keep_until(run.done):
                self._tell(record)
            # Offline, this start's files now hold all of the run and those of earlier ones a part.
            own = Path(self._wandb.dir).parent.name
            for path in (run.folder / "wandb").glob(f"offline-run-*-{self._wandb.id}"):
                if path.name != own:
                    shutil.rmtree(path)
        run.wandb_id = None if self._wandb is None else self._wandb.id

    def append(self, metrics: dict[str, Any], evaluation: Evaluation) -> None:
        """Adds an epoch; for W&B also the histogram of widths of every routed layer."""
        self._metrics.append(metrics)
        if self._wandb is None:
            return
        histograms = {}
        if evaluation.widths:
            widths = evaluation.widths
            if not all(isinstance(width, int) for width in widths):
                widths = tuple(range(len(widths)))  # by their place
            edges = [width - 0.5 for width in (*widths, widths[-1] + 1)]
            layers = zip(evaluation.routed_names, evaluation.histogram.tolist(), strict=True)
            histograms = {f"widths/{name}": (counts, edges) for name, counts in layers}
            counts, edges = np.histogram(evaluation.cost.numpy(), bins=COST_BINS)
            histograms["bit_flops_per_image"] = counts.tolist(), edges.tolist()
        record = {key: value for key, value in metrics.items() if value is not None}
        record["histograms"] = histograms
        self._told.append(record)
        self._tell(record)

    def finish(self, summary: dict[str, Any] | None = None, exit_code: int = 0) -> None:
        """Closes the W&B run with the final figures, or with the status of a process that ends."""
        if self._wandb is not None:
            self._wandb.summary.update(summary or {})
            self._wandb.finish(exit_code=exit_code)

    def _tell(self, record: dict[str, Any]) -> None:
        if record["epoch"] < self._wandb.step:  # W&B has it already
            return
        from wandb import Histogram

        histograms = {n: Histogram(np_histogram=pair) for n, pair in record["histograms"].items()}
        metrics = {key: value for key, value in record.items() if key != "histograms"}
        # Committed at once: otherwise an epoch would wait for the next one.
        self._wandb.log(metrics | histograms, step=record["epoch"], commit=True)
