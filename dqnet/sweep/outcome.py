"""What became of a run, read from its folder alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from yaml import YAMLError

from dqnet.config import TrainConfig
from dqnet.errors import UserError
from dqnet.runtime.files import read_json
from dqnet.sweep.failure import read_failure
from dqnet.training.checkpoint import check_same_run, config_of


@dataclass(frozen=True)
class Outcome:
    """One row of a sweep's table; ``summary`` or ``error`` is ``None``."""

    folder: Path
    state: Literal["done", "complete before", "failed"]
    summary: dict[str, Any] | None = None
    error: str | None = None


def earlier_outcome(folder: Path, config: TrainConfig) -> Outcome | None:
    """What is settled before a run is started, without reading a checkpoint.

    Args:
        folder: the run folder.
        config: what is to be run there.

    Returns:
        The outcome of a complete run, or a failure if the folder holds a run with other settings;
        ``None`` if there is something to do.
    """
    record, last, summary = (
        folder / name for name in (".hydra/config.yaml", "last.pt", "summary.json")
    )
    # A complete run may have lost its checkpoints, which are large.
    if not record.exists() or not (last.exists() or summary.exists()):
        return None
    try:
        content = OmegaConf.load(record)
    except (OSError, YAMLError):
        return None  # the run reads its checkpoint, and decides
    if not content:
        return None
    try:
        stored = config_of({"config": content}, record)
        check_same_run(last, asdict(stored), config)
    except UserError as error:
        return Outcome(folder, "failed", error=str(error))
    return Outcome(folder, "complete before", read_json(summary)) if summary.exists() else None


def outcome(folder: Path, died: str | None = None) -> Outcome:
    """What a run that was started left.

    Args:
        folder: the run folder.
        died: what is known of a process that ended without leaving anything.
    """
    error, summary = read_failure(folder), folder / "summary.json"
    if error is None and summary.exists():  # an earlier start's summary says nothing of this one
        return Outcome(folder, "done", read_json(summary))
    error = error or died or "its process ended and left no reason"
    return Outcome(folder, "failed", error=error)
