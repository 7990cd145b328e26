"""Post-training methods within a run: progress, and going on after a stop."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from dqnet.layers import QuantLayer
from dqnet.post_training import adaround, correct_biases
from dqnet.runtime.files import remove
from dqnet.training.checkpoint import save_checkpoint
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
    images = torch.cat(list(batches))[: how.images]
    if how.adaround:
        _adaround(run, images, console)
    if how.bias_correction:
        correct_biases(run.learner.model, images)


def _adaround(run: RunState, images: Tensor, console: Console) -> None:
    path, config = run.folder / UNFINISHED, asdict(run.config)
    content: dict[str, Any] = read_checkpoint(path) if path.exists() else {}
    known: dict[str, Tensor] = content["rounded"] if content.get("config") == config else {}
    layers = sum(isinstance(module, QuantLayer) for module in run.learner.model.modules())
    hidden = not (run.config.trainer.progress and console.is_terminal)
    bar = iter(track(range(layers), "AdaRound", console=console, transient=True, disable=hidden))
    written = time.monotonic()

    def done(name: str) -> None:
        nonlocal written
        next(bar, None)
        if time.monotonic() - written > SECONDS:
            save_checkpoint(path, {"config": config, "rounded": known})
            written = time.monotonic()

    how = run.config.quant.post_training
    adaround(run.learner.model, images, how.adaround, done=done, known=known)
    next(bar, None)  # closes it
    remove(path)
