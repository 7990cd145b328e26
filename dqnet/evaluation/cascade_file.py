"""A cascade as a checkpoint: what its networks' checkpoints hold, and its own few numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dqnet.cascade import Cascade
from dqnet.errors import UserError
from dqnet.training.checkpoint import FORMAT, save_checkpoint

#: of a checkpoint, what only a training that goes on needs
TRAINING = ("optimizer", "random", "history", "best", "seconds", "step")
#: of a cascade's state dict, its own
NUMBERS = ("threshold", "temperatures", "weight")


def write_cascade(
    path: Path,
    cascade: Cascade,
    first: dict[str, Any],
    second: dict[str, Any] | None,
) -> None:
    """Writes ``best.pt`` of a cascade.

    Args:
        path: the file.
        cascade: its settings and numbers.
        first, second: what the checkpoints of its passes hold, with their ``budget_lambda``; no
            second one if the first network looks again.
    """
    own = {"view": cascade.view, "combine": cascade.combine}
    own |= {name: getattr(cascade, name).cpu() for name in NUMBERS}
    save_checkpoint(path, {"cascade": own, "first": _kept(first), "second": _kept(second)})


def _kept(content: dict[str, Any] | None) -> dict[str, Any] | None:
    if content is None:
        return None
    if "cascade" in content:
        return {key: content[key] for key in ("cascade", "first", "second")}
    return {"format": FORMAT} | {k: v for k, v in content.items() if k not in TRAINING}


def loaded_cascade(
    content: dict[str, Any], first: nn.Module, second: nn.Module | None, path: Path
) -> Cascade:
    """The cascade of a checkpoint's content and its two networks.

    Raises:
        UserError: if the content is not that of a cascade.
    """
    own = content["cascade"]
    if not isinstance(own, dict) or not {"view", "combine", *NUMBERS} <= own.keys():
        raise UserError(f"{path} is not a whole cascade")
    cascade = Cascade(first, second, view=own["view"], combine=own["combine"])
    for name in NUMBERS:
        value, buffer = own[name], getattr(cascade, name)
        if not isinstance(value, Tensor) or value.shape != buffer.shape:
            raise UserError(f"{path} holds no {name} of a cascade")
        buffer.copy_(value)
    return cascade.to(next(first.parameters()).device)
