"""How far a run has come, and the checkpoints that it continues from."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from dqnet.config import TrainConfig
from dqnet.data import Loaders, Splits
from dqnet.errors import UserError
from dqnet.measurement import Evaluation
from dqnet.network import QuantizedModel
from dqnet.processes import largest
from dqnet.training.checkpoint import check_same_run, config_of, load_newest, save_checkpoint
from dqnet.training.learner import Learner
from dqnet.training.tables import print_line

#: steps between two looks at the loss, each of which waits for the device
CHECK_EVERY = 50
#: an epoch may be the best one if it costs at most this times the target
COST_TOLERANCE = 1.02


class NotFiniteError(UserError):
    """The loss or a weight is infinite or not a number."""


class LossHistory:
    """The loss's terms at the steps of an epoch, where they were computed: no step waits for a GPU.

    It begins with the first steps' :meth:`state_dict`, moved to where the next ones will be.
    """

    def __init__(
        self, state: dict[str, Tensor] | None = None, device: torch.device | str = "cpu"
    ) -> None:
        state = state or {}
        self._terms = {name: list(values.to(device)) for name, values in state.items()}

    def __len__(self) -> int:
        """How many steps are done."""
        return max(map(len, self._terms.values()), default=0)

    def append(self, terms: dict[str, Tensor]) -> None:
        """Adds a step's terms, scalars; the same names at every step."""
        for name, term in terms.items():
            self._terms.setdefault(name, []).append(term.detach().double())

    def means(self) -> dict[str, float]:
        """Each term's mean over the steps done."""
        return {name: values.mean().item() for name, values in self.state_dict().items()}

    def state_dict(self) -> dict[str, Tensor]:
        """float64 ``[steps done]`` by term, on the CPU; empty before the first step."""
        return {name: torch.stack(values).cpu() for name, values in self._terms.items()}

    def finite_steps(self) -> int:
        """How many steps were done before a term was not finite; waits for the device."""
        finite = [values.isfinite() for values in self.state_dict().values()]
        return int(torch.stack(finite).all(0).long().cumprod(0).sum()) if finite else 0


class RunState:
    """What a run has done so far.

    Attributes:
        done: whole epochs.
        steps: of an epoch.
        history: the loss's terms at each step of the epoch after them.
        best: ``epoch``, from 0, and ``rank`` of the best epoch; ``None`` before the first one.
        wandb_id: of the W&B run; ``None`` without one.
    """

    def __init__(
        self, folder: Path, config: TrainConfig, learner: Learner, splits: Splits, data: Loaders
    ) -> None:
        self.folder, self.config, self.learner = folder, config, learner
        self.splits, self.data = splits, data
        self.done, self.steps, self.history = 0, len(data.train), LossHistory()
        self.best: dict[str, Any] | None = None
        self.wandb_id: str | None = None
        self._began = self._saved = time.monotonic()
        self._since_saved = 0  # steps

    @property
    def seconds(self) -> float:
        """How long the run has taken, earlier starts included but for what they had to repeat."""
        return time.monotonic() - self._began

    @property
    def is_new(self) -> bool:
        """Whether not a single step is done."""
        return self.done == 0 and not len(self.history)

    def resume(self, path: Path, state: dict[str, Any], console: Console) -> None:
        """Continues from a checkpoint and its content; the console is told."""
        self.learner.load_state_dict(state)
        self.done, self.best, self.wandb_id = state["epoch"], state["best"], state["wandb_id"]
        self.history = LossHistory(state.get("history"), self.learner.device.torch_device)
        self._began = time.monotonic() - state["seconds"]
        within = f" and {len(self.history)} of {self.steps} steps" if len(self.history) else ""
        epochs = f"{self.done} of {self.config.trainer.epochs}"
        print_line(console, f"continuing {path} after epoch {epochs}{within}")
        if path.name == "best.pt":
            self.save()  # which a crash prevented

    def save(self) -> None:
        """Writes ``last.pt``; the one before becomes ``previous.pt``."""
        save_checkpoint(self.folder / "last.pt", self._content(), self.folder / "previous.pt")
        self._saved, self._since_saved = time.monotonic(), 0

    def save_best(self) -> None:
        """Writes ``best.pt``."""
        save_checkpoint(self.folder / "best.pt", self._content())

    def after_step(self) -> None:
        """Saves every ``checkpoint_steps`` steps and every ``checkpoint_minutes`` minutes.

        Raises:
            NotFiniteError: if the loss or a weight is not finite, which is not looked at each time.
        """
        self._since_saved += 1
        trainer, minutes = self.config.trainer, (time.monotonic() - self._saved) / 60
        due = (
            trainer.checkpoint_steps is not None and self._since_saved >= trainer.checkpoint_steps
        ) or (trainer.checkpoint_minutes is not None and minutes >= trainer.checkpoint_minutes)
        due = bool(largest(due))  # clocks differ from process to process
        if due or len(self.history) % CHECK_EVERY == 0:
            self.check_finite()
        if due:
            self.save()

    def check_finite(self) -> None:
        """Raises NotFiniteError if the loss was not finite, or the next one will not be."""
        finite, done = self.history.finite_steps(), len(self.history)
        if finite == done and self.learner.is_finite():
            return
        what, step = ("a weight", done) if finite == done else ("the loss", finite + 1)
        kept = self.folder / "last.pt"
        last = f"{kept} is the last good checkpoint" if kept.exists() else "there is no checkpoint"
        raise NotFiniteError(
            f"{what} is not finite: seen at step {self.done * self.steps + step} (step {step} of "
            f"epoch {self.done + 1}), learning rate {self.learner.lr:g}; lower optim.lr or set "
            f"optim.clip_grad; {last}"
        )

    def is_best(self, evaluation: Evaluation) -> bool:
        """Whether the epoch that was evaluated is the best one so far, which is noted.

        Within the budget comes first, then accurate; outside it, cheap. Where there is no
        validation part the latest one counts as the best, as nothing is chosen by the test part.
        """
        objective, top1 = self.learner.objective, evaluation.metrics["top1"]
        cost = evaluation.mean_cost(objective.cost)
        affordable = cost is None or cost <= COST_TOLERANCE * objective.target
        rank = [1.0, top1] if affordable else [0.0, -cost]
        if self.best is None or self.data.val is None or rank > self.best["rank"]:
            self.best = {"epoch": self.done, "rank": rank}
        return self.best["epoch"] == self.done

    def next_epoch(self) -> None:
        """The epoch's steps are done and evaluated."""
        self.done, self.history = self.done + 1, LossHistory()

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
            "cost_options": self.learner.objective.cost_options,
        }


def read_state(
    folder: Path, config: TrainConfig, console: Console | None = None
) -> tuple[Path, dict[str, Any]] | None:
    """The newest good checkpoint of a run folder and its path, if there is one.

    The console, if any, is told if the newest checkpoint is damaged.

    Raises:
        UserError: if the folder's run has other settings, or no checkpoint can be read, or it is
            complete and has none any more.
    """
    found = load_newest(folder, console)
    if found is not None:
        path, state = found
        check_same_run(path, asdict(config_of(state, path)), config)
    elif (folder / "summary.json").exists():
        raise UserError(
            f"{folder} holds the summary of a complete run and none of its checkpoints: "
            "choose another folder (hydra.run.dir), or remove that one"
        )
    return found
