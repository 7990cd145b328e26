"""How far a run has come, and the checkpoints that it continues from."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from dqnet.config import TrainConfig
from dqnet.data import Loaders, Splits
from dqnet.errors import UserError
from dqnet.network import QuantizedModel
from dqnet.processes import largest
from dqnet.runtime.interval import CheckpointInterval
from dqnet.training.checkpoint import check_same_run, config_of, load_newest, save_checkpoint
from dqnet.training.history import LossHistory
from dqnet.training.learner import Learner
from dqnet.training.tables import print_line

#: steps between two looks at the loss, each of which waits for the device
CHECK_EVERY = 50
#: an epoch may be the best one if it costs at most this times the target
COST_TOLERANCE = 1.02


class NotFiniteError(ArithmeticError):
    """A value that is infinite or not a number; the text says which."""


class RunState:
    """What a run has done so far.

    Args:
        folder: the run folder.
        config: the run's.
        learner: what is trained.
        splits, data: what it is trained on.
        interval: when a checkpoint is due within an epoch.

    Attributes:
        done: whole epochs.
        history: the loss's terms at each step of the epoch after them.
        best: ``epoch``, from 0, and ``rank`` of the best epoch; ``None`` before the first one.
        wandb_id: of the W&B run; ``None`` without one.
    """

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        learner: Learner,
        splits: Splits,
        data: Loaders,
        interval: CheckpointInterval,
    ) -> None:
        self.folder, self.config, self.learner = folder, config, learner
        self.splits, self.data = splits, data
        self.done, self.history = 0, LossHistory(len(data.train))
        self.best: dict[str, Any] | None = None
        self.wandb_id: str | None = None
        self._interval = interval
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """How long the run has taken, earlier starts included but for what they had to repeat."""
        return time.perf_counter() - self._began

    @property
    def is_new(self) -> bool:
        """Whether not a single step is done."""
        return self.done == 0 and not len(self.history)

    def resume(self, path: Path, state: dict[str, Any], console: Console) -> None:
        """Continues from a checkpoint and its content; the console is told."""
        self.learner.load_state_dict(state)
        self.done, self.best, self.wandb_id = state["epoch"], state["best"], state["wandb_id"]
        self.history = LossHistory(self.history.length, state.get("history"))
        self._began = time.perf_counter() - state["seconds"]
        epochs, steps = self.config.trainer.epochs, self.history.length
        within = f" and {len(self.history)} of {steps} steps" if len(self.history) else ""
        print_line(console, f"continuing {path} after epoch {self.done} of {epochs}{within}")
        if path.name == "best.pt":
            self.save()  # which a crash prevented

    def save(self) -> None:
        """Writes ``last.pt``; the one before becomes ``previous.pt``."""
        save_checkpoint(self.folder / "last.pt", self._content(), self.folder / "previous.pt")
        self._interval.restart()

    def save_best(self) -> None:
        """Writes ``best.pt``."""
        save_checkpoint(self.folder / "best.pt", self._content())

    def after_step(self) -> None:
        """Saves when it is time to.

        Raises:
            NotFiniteError: if the loss or a weight is not finite, which is not looked at each time.
        """
        due = bool(largest(self._interval.step()))  # clocks differ from process to process
        if due or len(self.history) % CHECK_EVERY == 0:
            self.check_finite()
        if due:
            self.save()

    def check_finite(self) -> None:
        """Raises NotFiniteError if the loss was not finite, or the next one will not be."""
        if not (self.history.is_finite() and self.learner.is_finite()):
            raise NotFiniteError("the loss or a weight")

    def is_best(self, metrics: dict[str, Any]) -> bool:
        """Whether the epoch that was evaluated is the best one so far, which is noted.

        Within the budget comes first, then accurate; outside it, cheap. Where there is no
        validation part the latest one counts as the best, as nothing is chosen by the test part.
        """
        target = self.learner.objective.target
        affordable = target is None or metrics["bit_flops"] <= COST_TOLERANCE * target
        rank = [1.0, metrics["top1"]] if affordable else [0.0, -metrics["bit_flops"]]
        if self.best is None or self.data.val is None or rank > self.best["rank"]:
            self.best = {"epoch": self.done, "rank": rank}
        return self.best["epoch"] == self.done

    def next_epoch(self) -> None:
        """The epoch's steps are done and evaluated."""
        self.done, self.history = self.done + 1, LossHistory(self.history.length)

    def _content(self) -> dict[str, Any]:
        model = self.learner.model
        return {
            "config": asdict(self.config),
            "epoch": self.done,
            "step": len(self.history),
            "history": self.history.state_dict(),
            **self.learner.state_dict(),
            "seconds": self.seconds,
            "best": self.best,
            "num_classes": self.splits.num_classes,
            "class_names": list(self.splits.class_names),
            "image_shape": list(self.splits.image_shape),
            "images": self.data.images,
            "wandb_id": self.wandb_id,
            "plan": model.plan.to_json() if isinstance(model, QuantizedModel) else None,
        }


def read_state(
    folder: Path, config: TrainConfig, console: Console | None = None
) -> tuple[Path, dict[str, Any]] | None:
    """The newest good checkpoint of a run folder and its path, if there is one.

    Args:
        folder: the run folder.
        config: of the run that is to be in it.
        console: is told if the newest checkpoint is damaged.

    Raises:
        UserError: if the folder's run has other settings, or no checkpoint can be read, or it is
            complete and has none any more.
    """

    def warn(message: str) -> None:
        if console is not None:
            print_line(console, f"warning: {message}")

    found = load_newest(folder, warn)
    if found is not None:
        path, state = found
        check_same_run(path, asdict(config_of(state, path)), config)
    elif (folder / "summary.json").exists():
        raise UserError(
            f"{folder} holds the summary of a complete run and none of its checkpoints: "
            "choose another folder (hydra.run.dir), or remove that one"
        )
    return found
