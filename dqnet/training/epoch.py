"""One pass over the training data, and the bar that shows it."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from dqnet.training.run_state import RunState


def train_epoch(run: RunState, batches: Iterable[tuple[Tensor, Tensor]], console: Console) -> None:
    """Makes the steps of an epoch, or what is left of them.

    Args:
        run: what is trained; every step is noted in its history.
        batches: images ``[B, C, H, W]`` and labels ``[B]`` of the steps that are left.
        console: where progress is shown.

    Raises:
        NotFiniteError: if the loss or a weight is not finite, by the end at the latest.
    """
    run.learner.model.train()
    trainer, steps = run.config.trainer, run.history.length
    with _progress(console, trainer.progress) as progress:
        title = f"epoch {run.done + 1}/{trainer.epochs}"
        task = progress.add_task(title, total=steps, completed=len(run.history))
        for images, labels in batches:
            update = run.done * steps + len(run.history)
            run.history.append(run.learner.step(update, images, labels))
            progress.advance(task)
            run.after_step()
    run.check_finite()


def _progress(console: Console, wanted: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (wanted and console.is_terminal),
    )
