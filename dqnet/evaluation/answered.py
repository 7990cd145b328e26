"""Trained networks with what they answer to held-out and to measured images, in every view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from dqnet.config import EvalConfig
from dqnet.errors import UserError
from dqnet.evaluation.cascade import Viewed
from dqnet.evaluation.trained import Trained, load_trained
from dqnet.measurement import evaluate
from dqnet.network import QuantizedModel


class Pass(NamedTuple):
    """A network and what it sees of the images."""

    network: Network
    view: str | None = None

    def __str__(self) -> str:
        return self.network.name if self.view is None else f"{self.network.name} ({self.view}ed)"


class Answers(NamedTuple):
    """Logits ``[N, C]`` and Bit-FLOPs, float64 ``[N]``, of images with labels ``[N]``."""

    logits: Tensor
    costs: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class Network:
    """A trained network and what it answers.

    Attributes:
        name: of its folder, with as much of the path as tells it from the others.
        trained: the network and its images.
        views: what images may be looked at as: as they are, and mirrored if training did so.
        held_out, measured: by view; of the images to choose by, and to report.
    """

    name: str
    trained: Trained
    views: tuple[str | None, ...]
    held_out: dict[str | None, Answers]
    measured: dict[str | None, Answers]

    @property
    def model(self) -> QuantizedModel:
        return self.trained.model

    @property
    def quantizer(self) -> str | None:
        return self.trained.config.quant.quantizer

    @property
    def seed(self) -> int:
        return self.trained.config.seed

    @property
    def is_static(self) -> bool:
        return self.model.controller is None

    @cached_property
    def cost(self) -> float:
        """Bit-FLOPs of the mean image that is measured."""
        return self.measured[None].costs.mean().item()

    def like(self, other: Network) -> bool:
        """Whether both are of one configuration but for the seed."""
        mine, others = self.trained.config, other.trained.config
        return replace(mine, seed=0) == replace(others, seed=0)


def names_of(paths: Sequence[str]) -> list[str]:
    """Of run folders or checkpoints: of each the last part of its path that is no other's.

    Raises:
        UserError: if two are the same.
    """
    parts = []
    for path in map(Path, paths):
        whole = path.absolute()
        parts.append((whole if whole.is_dir() else whole.parent).parts)
    twice = next(
        (path for path, own in zip(paths, parts, strict=True) if parts.count(own) > 1), None
    )
    if twice is not None:
        raise UserError(f"{twice} is given twice")
    lengths = [
        next(n for n in range(1, len(own) + 1) if sum(own[-n:] == o[-n:] for o in parts) == 1)
        for own in parts
    ]
    return ["/".join(own[-n:]) for own, n in zip(parts, lengths, strict=True)]


def load_network(
    path: str, name: str, config: EvalConfig, console: Console, like: Network | None
) -> Network:
    """A network and its answers to both sets of images, each in every view.

    Raises:
        UserError: if it is no converted network, kept no held-out images, or has other images.
    """
    trained = load_trained(path, config, console, None if like is None else like.trained)
    if not isinstance(trained.model, QuantizedModel):
        raise UserError(f"{trained.path} is no quantized network, whose cost is known")
    if trained.data.val is None:
        raise UserError(
            f"{trained.path} kept no images to choose by: train with data.val_fraction=0.1"
        )
    views = (None, "mirror") if trained.config.data.flip else (None,)

    def answered(batches: Any) -> dict[str | None, Answers]:
        found = {}
        for view in views:
            seen = Viewed(batches, view)
            own = evaluate(trained.model, seen, *trained.how, keep_logits=True)
            found[view] = Answers(own.logits, own.cost, own.labels)
        return found

    network = Network(name, trained, views, answered(trained.data.val), answered(trained.held_out))
    if like is not None and not all(
        torch.equal(mine[None].labels, others[None].labels)
        for mine, others in ((network.held_out, like.held_out), (network.measured, like.measured))
    ):
        raise UserError(f"{trained.path} and {like.trained.path} have different images")
    return network
