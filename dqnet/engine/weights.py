"""Float weights from a file into a float model."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dqnet.errors import UserError
from dqnet.state_names import BACKBONE_PREFIX, added_by_conversion, rename_old_names


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint file, on the CPU; it cannot run code (``weights_only``).

    Raises:
        UserError: if the file is missing or is not a checkpoint.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"checkpoint {path} does not exist")
    if path.is_dir():
        raise UserError(f"checkpoint {path} is a folder; name a file in it, such as best.pt")
    try:
        with warnings.catch_warnings():  # about the pickle format of what is refused anyway
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # damaged bytes raise whatever they happen to lead to
        # PyTorch's own text would recommend to load the file with its code all the same.
        code = isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error)
        reason = (
            "it holds other Python objects than tensors" if code else "damaged or of another kind"
        )
        raise UserError(f"{path} is not a readable PyTorch checkpoint ({reason})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def float_state_dict(content: dict[str, Any]) -> dict[str, Tensor]:
    """The float model's weights in a checkpoint, whoever wrote it.

    Understood are a bare state dict, one wrapped as ``state_dict`` or ``model``, names prefixed
    with ``module.`` (DataParallel), and this project's own checkpoints: of a converted model the
    float weights are taken, without what conversion added to it.
    """
    ema = content.get("ema")
    for state in (ema, content.get("state_dict"), content.get("model"), content):
        if isinstance(state, dict) and state:
            break
    state = {str(key).removeprefix("module."): value for key, value in state.items()}
    rename_old_names(state)
    if any(key.startswith(BACKBONE_PREFIX) for key in state):
        state = {
            key.removeprefix(BACKBONE_PREFIX): value
            for key, value in state.items()
            if key.startswith(BACKBONE_PREFIX) and not added_by_conversion(key)
        }
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}


def load_float_weights(model: nn.Module, path: str | Path) -> None:
    """Loads a checkpoint's float weights into a float model, every one of them.

    Raises:
        UserError: if the file is missing or damaged, or holds another model's weights, or some
            that are not finite.
    """
    state = float_state_dict(read_checkpoint(path))
    _check_fits(model, state, path)
    model.load_state_dict(state, strict=False)


def load_own_weights(model: nn.Module, content: dict[str, Any], path: str | Path) -> None:
    """Loads what a checkpoint of this very model holds: the moving average, where it has one.

    Raises:
        UserError: if these are another model's weights, or not finite.
    """
    state = content["ema"] or content["model"]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path} has no weights where they should be ('model')")
    rename_old_names(state)
    _check_fits(model, state, path)
    model.load_state_dict(state, strict=False)


def _check_fits(model: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    """Raises UserError unless ``state`` has the model's names and shapes, and finite values."""
    own = model.state_dict()
    # Old checkpoints lack this counter, which nothing here reads.
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    extra = [k for k in state if k not in own]
    shapes = [k for k in own if k in state and own[k].shape != state[k].shape]
    if missing or extra:
        parts = [f"lacks {missing[0]!r}"] if missing else []
        parts += [f"has {extra[0]!r}"] if extra else []
        count = len(missing) + len(extra)
        raise UserError(
            f"{path} is a checkpoint of another model: it {' and '.join(parts)}"
            f"{f' ({count} such names)' if count > 2 else ''}"
        )
    if shapes:
        name, theirs, ours = shapes[0], list(state[shapes[0]].shape), list(own[shapes[0]].shape)
        if theirs[1:] == ours[1:] and name.startswith(_classifier_name(model)):
            raise UserError(
                f"{path} classifies {theirs[0]} classes, the data has {ours[0]}: "
                "train on the same classes or start without it"
            )
        raise UserError(
            f"{path} is a checkpoint of another model: {name!r} is {theirs}, it must be {ours}"
        )
    for name, value in state.items():
        if not value.isfinite().all():
            raise UserError(f"{path} has values in {name!r} that are not finite: training diverged")


def _classifier_name(model: nn.Module) -> str:
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return linear[-1] if linear else "\0"
