"""Float weights from a file into a float model."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dqnet.errors import UserError, unknown_name
from dqnet.state_dicts import (
    BACKBONE_PREFIX,
    added_by_conversion,
    is_counter,
    rename_old_names,
    without_prefixes,
)
from dqnet.training.weight_files import file_of
from dqnet.training.weight_order import difference, renamed_by_order

#: where training programs keep a moving average of the weights (this one, timm, torchvision), ...
AVERAGES = ("ema", "state_dict_ema", "model_ema")
#: ... and where they keep the weights themselves; an average is preferred, as by timm's loader
WEIGHTS = ("state_dict", "model", "model_state_dict", "net", "module")
#: how a tensor of a checkpoint is recognised
RECOGNISED_BY = ("name", "order")


def read_checkpoint(path: str | Path, skip_objects: bool = False) -> dict[str, Any]:
    """The content of a checkpoint file, on the CPU; it cannot run code (``weights_only``).

    Args:
        path: a file of ``torch.save``, or of safetensors if it is called ``*.safetensors``.
        skip_objects: whether a file may hold other Python objects than tensors and plain values,
            such as a training program's arguments; an inert stand-in takes the place of each.

    Raises:
        UserError: if the file is missing or is not a checkpoint.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"checkpoint {path} does not exist")
    if path.is_dir():
        raise UserError(f"checkpoint {path} is a folder; name a file in it, such as best.pt")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        stand_ins = _stand_ins(path) if skip_objects else []
        with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
            warnings.simplefilter("ignore")  # about the pickle format of what is refused anyway
            content = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # damaged bytes raise whatever they happen to lead to
        # PyTorch's own text would recommend to load the file with its code all the same.
        if isinstance(error, pickle.UnpicklingError) and re.search("GLOBAL|Can only", str(error)):
            raise _holds_objects(path) from error
        kind = "safetensors file" if path.suffix == ".safetensors" else "PyTorch checkpoint"
        raise UserError(f"{path} is not a readable {kind} (damaged or of another kind)") from error
    if isinstance(content, _StandIn):
        raise _holds_objects(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def _holds_objects(path: str | Path) -> UserError:
    return UserError(
        f"{path} is not a readable PyTorch checkpoint (it holds other Python objects than "
        "tensors): write the weights alone, torch.save(model.state_dict(), FILE)"
    )


class _StandIn:
    """Takes the place of a Python object in a file, and does nothing."""

    def __new__(cls, *args: Any) -> _StandIn:
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def _stand_ins(path: Path) -> list[tuple[type, str]]:
    """A stand-in for every class and function that a file names and PyTorch does not allow."""
    names = {f"{argparse.Namespace.__module__}.{argparse.Namespace.__qualname__}"}
    with suppress(Exception):  # the old format cannot be searched; a damaged file is seen later
        names.update(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    return [(_StandIn, name) for name in names]


def float_state_dict(content: dict[str, Any], names: Collection[str]) -> dict[str, Tensor]:
    """The float model's weights in a checkpoint, whoever wrote it.

    Understood are state dicts, bare or at one of :data:`AVERAGES` or :data:`WEIGHTS`, under the
    names that :func:`without_prefixes` knows, and this project's own checkpoints: of a converted
    model the float weights are taken, without what conversion added.

    Args:
        content: the checkpoint's.
        names: of the float model's weights. They decide what is a prefix.
    """
    for _ in range(4):  # not without end: a stranger's dictionary may contain itself
        inner = (content.get(key) for key in (*AVERAGES, *WEIGHTS))
        state = next((value for value in inner if isinstance(value, dict) and value), None)
        if state is None:
            break
        content = state
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    rename_old_names(tensors)
    names, best = set(names), tensors
    for reading in without_prefixes(tensors):
        plain = {name: tensors[key] for key, name in reading.items() if not is_counter(name)}
        inner = {
            name.removeprefix(BACKBONE_PREFIX): value
            for name, value in plain.items()
            if name.startswith(BACKBONE_PREFIX) and not added_by_conversion(name)
        }
        best = max(best, plain, inner, key=lambda state: len(state.keys() & names))
    return best


def load_float_weights(model: nn.Module, path: str | Path, by: str = "name") -> None:
    """Loads a checkpoint's float weights into a float model, every one of them.

    Args:
        model: the float model.
        path: the file, or one inside an installed package: ``package:NAME/PATH``.
        by: what a tensor is known by: its ``"name"``, or its place in the ``"order"``, for another
            implementation of the same network (see :mod:`dqnet.training.weight_order`).

    Raises:
        UserError: if the file is missing or damaged, or holds another model's weights, or some
            that are not finite.
    """
    load_closest([model], path, by)


def load_closest(models: Sequence[nn.Module], path: str | Path, by: str = "name") -> int:
    """Loads a checkpoint as :func:`load_float_weights` does into the model that it is of.

    That is the one of which it has most tensors, by name and shape; the first of several such.

    Returns:
        Its index.
    """
    if by not in RECOGNISED_BY:
        raise unknown_name("model.checkpoint_by", by, RECOGNISED_BY)
    path = file_of(path)
    content = read_checkpoint(path, skip_objects=True)
    shares = [_share(content, model.state_dict(), by) for model in models]
    closest = shares.index(max(shares))
    _load(models[closest], content, path, by)
    return closest


def _share(content: dict[str, Any], own: dict[str, Tensor], by: str) -> float:
    """Of a model's tensors, those that a checkpoint has: between 0 and 1."""
    state = float_state_dict(content, own.keys())
    if by == "order" and difference(state, own) is None:
        return 1.0
    return sum(k in state and state[k].shape == v.shape for k, v in own.items()) / len(own)


def _load(model: nn.Module, content: dict[str, Any], path: Path, by: str) -> None:
    own = model.state_dict()
    state = float_state_dict(content, own.keys())
    if not state and any(isinstance(value, _StandIn) for value in content.values()):
        raise _holds_objects(path)  # such as the model itself, pickled
    if by == "order":
        state = renamed_by_order(state, own, path)
    _check_fits(model, state, path)
    model.load_state_dict(state, strict=False)


def load_own_weights(model: nn.Module, content: dict[str, Any], path: str | Path) -> None:
    """Loads what a checkpoint of this very model holds: the moving average, where it has one."""
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
    if missing or extra:
        parts = [f"lacks {k!r}" for k in missing[:1]] + [f"has {k!r}" for k in extra[:1]]
        count = len(missing) + len(extra)
        hint = ""
        if missing and difference(state, own) is None:
            hint = "; its tensors have the model's shapes in the same order: if it is another "
            hint += "implementation of the same network, load it with model.checkpoint_by=order"
        more = f" ({count} such names)" if count > 2 else ""
        raise UserError(
            f"{path} is a checkpoint of another model: it {' and '.join(parts)}{more}{hint}"
        )
    for name, value in state.items():
        theirs, ours = list(value.shape), list(own[name].shape)
        if theirs != ours and theirs[1:] == ours[1:] and name.startswith(_classifier_name(model)):
            raise UserError(
                f"{path} classifies {theirs[0]} classes, the data has {ours[0]}: "
                "train on the same classes or start without it"
            )
        if theirs != ours:
            raise UserError(
                f"{path} is a checkpoint of another model: {name!r} is {theirs}, it must be {ours}"
            )
        if not value.isfinite().all():
            raise UserError(f"{path} has values in {name!r} that are not finite: training diverged")


def _classifier_name(model: nn.Module) -> str:
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return linear[-1] if linear else "\0"
