"""Post-training methods within a run: progress, and going on after a stop."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from dqnet.layers import quantized_layers
from dqnet.post_training import adaround, correct_biases
from dqnet.runtime.files import remove
from dqnet.training.checkpoint import check_same_run, save_checkpoint
from dqnet.training.run_state import RunState
from dqnet.training.weights import read_checkpoint

#: in the run folder: the weights that are rounded so far
UNFINISHED = "adaround.pt"
#: between two times that it is written
SECONDS = 10.0


def post_train(run: RunState, batches: Iterable[Tensor], console: Console) -> None:
    """Rounds weights and corrects biases of a calibrated network, as ``quant.post_training`` says.

    Args:
        run: a run before its first step.
        batches: images ``[B, C, H, W]`` that it was calibrated on.
        console: where progress is shown.
    """
    how = run.config.quant.post_training
    if not (how.adaround or how.bias_correction):
        return
    images = _first(batches, how.images)
    if how.adaround:
        _adaround(run, images, console)
    if how.bias_correction:
        correct_biases(run.learner.model, images)


def _first(batches: Iterable[Tensor], count: int) -> Tensor:
    """The first images of some batches, as one; no batch is read that is not needed."""
    parts: list[Tensor] = []
    for batch in batches:
        parts.append(batch[: count - sum(map(len, parts))])
        if sum(map(len, parts)) == count:
            break
    return torch.cat(parts)


def _adaround(run: RunState, images: Tensor, console: Console) -> None:
    path = run.folder / UNFINISHED
    known: dict[str, Tensor] = {}
    if path.exists():
        content = read_checkpoint(path)
        check_same_run(path, content["config"], run.config)
        known = content["rounded"]
    model, how = run.learner.model, run.config.quant.post_training
    hidden = not (run.config.trainer.progress and console.is_terminal)
    with Progress(console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task("AdaRound", total=len(quantized_layers(model)))
        written = time.monotonic()

        def done(name: str) -> None:
            nonlocal written
            progress.advance(task)
            if time.monotonic() - written > SECONDS:
                save_checkpoint(path, {"config": asdict(run.config), "rounded": known})
                written = time.monotonic()

        adaround(model, images, how.adaround, done=done, known=known)
    remove(path)
