"""Checkpoints of networks whose filters were removed: how one is made, and found again."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dqnet.config import PruneConfig, TrainConfig
from dqnet.errors import UserError
from dqnet.pruning.remove import logits_difference, remove_filters
from dqnet.trace import trace_model
from dqnet.training.build import build_model
from dqnet.training.checkpoint import config_of, load_checkpoint, save_checkpoint
from dqnet.training.weight_files import file_of
from dqnet.training.weights import load_own_weights, read_checkpoint
from dqnet.transforms import Channels

#: what the checkpoint of a run says that is true of the smaller network as well
KEPT = ("epoch", "num_classes", "class_names", "image_shape", "images")


@dataclass(frozen=True)
class Smaller:
    """What was written.

    Attributes:
        path: the checkpoint.
        counts: output channels of every layer that has fewer.
        filters, params, macs: before and after; of the filters those of the layers in ``counts``.
        difference, largest: the largest difference of two logits on noise, and the largest logit.
    """

    path: Path
    counts: dict[str, int]
    filters: tuple[int, int]
    params: tuple[int, int]
    macs: tuple[int, int]
    difference: float
    largest: float


def write_smaller(run: Path, path: Path | None = None) -> Smaller:
    """Removes the filters that a float run has left at zero, and writes the network without them.

    It is read like any float checkpoint, by ``eval.py`` and by ``model.checkpoint_path`` together
    with ``model.transforms=[{name: channels}]``.

    Args:
        run: a folder, meaning its ``best.pt``, or a checkpoint.
        path: the file to write; ``None``: ``smaller/best.pt`` beside the checkpoint.

    Raises:
        UserError: if the checkpoint cannot be read or is of a quantized network; or as
            :func:`~dqnet.pruning.remove.remove_filters`.
    """
    source = run / "best.pt" if run.is_dir() else run
    path = source.parent / "smaller" / "best.pt" if path is None else path
    content = load_checkpoint(source)
    config = config_of(content, source)
    if config.quant.quantizer is not None:
        raise UserError(
            f"{source} is of a quantized network: remove filters from the float one, then quantize "
            "what is left"
        )
    whole = _built(config, content)
    load_own_weights(whole, content, source)
    image = torch.zeros(1, *content["image_shape"])
    removed, counts = remove_filters(whole, image)

    # Pruning is over: a run that goes on from here trains what is left.
    transforms = [*config.model.transforms, {"name": Channels.name, "counts": counts}]
    model = replace(config.model, transforms=_merged(transforms))
    config = replace(config, model=model, prune=PruneConfig())
    rebuilt = _built(config, content)
    rebuilt.load_state_dict(removed.state_dict())
    difference, largest = logits_difference(whole, rebuilt, image)

    kept = {key: content[key] for key in KEPT if key in content}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, {**kept, "config": asdict(config), "model": rebuilt.state_dict()})
    pairs = [(len(whole.get_submodule(name).weight), left) for name, left in counts.items()]
    filters = sum(before for before, _ in pairs), sum(after for _, after in pairs)
    params, macs = (
        tuple(count(own) for own in (whole, rebuilt))
        for count in (_params, lambda own: _macs(own, image))
    )
    return Smaller(path, counts, filters, params, macs, difference, largest)


def with_channel_counts(config: TrainConfig) -> TrainConfig:
    """Fills in ``{name: channels}`` without counts: those of the network in the checkpoint.

    Raises:
        UserError: if no checkpoint is named, or it holds no network with removed filters.
    """
    transforms = config.model.transforms
    open_ones = [own for own in transforms if own == {"name": Channels.name}]
    if not open_ones:
        return config
    path = config.model.checkpoint_path
    theirs = [] if path is None else _transforms_of(path)
    counts = [own for own in theirs if own.get("name") == Channels.name]
    if len(counts) != len(open_ones):
        raise UserError(
            "transform 'channels' without counts takes those of the checkpoint, and "
            + ("none is named: " if path is None else f"{path} has none: ")
            + "model.checkpoint_path=RUN/smaller/best.pt, of dqnet.training.remove_filters"
        )
    found = iter(counts)
    filled = [next(found) if own == {"name": Channels.name} else own for own in transforms]
    return replace(config, model=replace(config.model, transforms=filled))


def _transforms_of(path: str) -> list[dict[str, Any]]:
    """Those of the configuration in a checkpoint, if it has one."""
    content: Any = read_checkpoint(file_of(path), skip_objects=True)
    for key in ("config", "model", "transforms"):
        content = content.get(key) if isinstance(content, Mapping) else None
    found = content if isinstance(content, list) else []
    return [copy.deepcopy(dict(own)) for own in found if isinstance(own, Mapping)]


def _built(config: TrainConfig, content: dict[str, Any]) -> nn.Module:
    shape, classes = tuple(content["image_shape"]), content["num_classes"]
    return build_model(config.model, config.quant, classes, shape, load_weights=False).eval()


def _merged(transforms: list[Any]) -> list[Any]:
    """Two removals, one after the other, are one."""
    *others, last = transforms
    if others and others[-1]["name"] == Channels.name:
        *others, before = others
        last = last | {"counts": {**before["counts"], **last["counts"]}}
    return [*others, last]


def _params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _macs(model: nn.Module, image: torch.Tensor) -> int:
    return sum(layer.macs for layer in trace_model(model, image, signs=False).layers.values())
