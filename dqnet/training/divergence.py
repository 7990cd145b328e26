"""Where a training that is no longer finite went wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from dqnet.data.loader import Loader
from dqnet.network import BACKBONE_PREFIX
from dqnet.processes import from_main
from dqnet.training.checkpoint import load_newest
from dqnet.training.learner import Learner
from dqnet.training.run_state import NotFiniteError, RunState


def explain(run: RunState) -> str:
    """Repeats a run from its last good checkpoint until it fails; says in one line where.

    A user would otherwise know that the loss is not finite and not which layer to look at: a run
    does not look at every value, as each look would make its step wait for the device.

    Args:
        run: the one that has failed; no more steps are made than it has made.
    """
    batches = run.data.train
    checkpoint = from_main(lambda: load_newest(run.folder))
    failed = run.done * len(batches) + len(run.history)
    learner = Learner(run.config, run.learner.device, run.splits, len(batches))
    start, kept = 0, "there was no checkpoint yet"
    if checkpoint is not None:
        path, state = checkpoint
        learner.load_state_dict(state)
        start = state["epoch"] * len(batches) + state.get("step", 0)
        kept = f"{path}, after step {start}, is the last good checkpoint"
    learner.model.train()
    for update, (images, labels) in _updates(batches, start, failed):
        try:
            # Compiled layers do not run hooks.
            with torch.compiler.set_stance("force_eager"), _every_value_checked(learner.model):
                terms = learner.step(update, images, labels)
            for name, term in terms.items():
                _check(term, f"the loss's term {name}, each layer's output being finite")
            for name, value in learner.model.state_dict().items():
                _check(value, f"{name.removeprefix(BACKBONE_PREFIX)} after the update")
        except NotFiniteError as error:
            epoch, i = divmod(update, len(batches))
            return (
                f"the loss is not finite: at step {update + 1} (step {i + 1} of epoch "
                f"{epoch + 1}), learning rate {learner.lr:g}, the first infinite or undefined "
                f"value is {error}; lower optim.lr or set optim.clip_grad; {kept}"
            )
    return (
        "the loss was not finite, but repeating its steps this did not happen again: "
        f"the same command goes on; {kept}"
    )


def _updates(batches: Loader, start: int, end: int) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
    """The numbers of the updates from ``start`` to ``end - 1``, each with its batch."""
    length = len(batches)
    for epoch in range(start // length, ceil(end / length)):
        first = max(start, epoch * length)
        batches.set_epoch(epoch, skip=first - epoch * length)
        yield from zip(range(first, end), batches, strict=False)  # the shorter ends it


@contextmanager
def _every_value_checked(model: nn.Module) -> Iterator[None]:
    """The first layer's output, or gradient, that is not finite raises :class:`NotFiniteError`."""

    def watch_output(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            for value in output if isinstance(output, tuple) else (output,):
                if isinstance(value, Tensor):
                    _check(value, f"in the output of {name}")
                    if value.requires_grad:
                        value.register_hook(
                            partial(_check, what=f"in the gradient of {name}'s output")
                        )

        return hook

    handles = []
    for name, module in model.named_modules():
        name = name.removeprefix(BACKBONE_PREFIX) or "the network"
        handles.append(module.register_forward_hook(watch_output(name)))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            name = name.removeprefix(BACKBONE_PREFIX)
            check = partial(_check, what=f"in the gradient of {name}")
            handles.append(parameter.register_hook(check))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check(value: Tensor, what: str) -> None:
    if not value.isfinite().all():
        raise NotFiniteError(what)
