"""What every method of pruning offers to a training, and which weights it is about."""

from __future__ import annotations

import copy
from collections.abc import Collection
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from dqnet.config import PruneConfig
from dqnet.dataflow import PLAIN_LAYERS
from dqnet.errors import UserError, unknown_name
from dqnet.layers import QuantLayer
from dqnet.network import QuantizedModel


class Pruning:
    """Makes and keeps zeros in the float weights of a network that is trained.

    Biases, norms and the controller are never pruned. Where layers are quantized, theirs are the
    weights before quantization, and a zero stays one in every format.

    Args:
        config, model, average, image_shape, updates: as of :func:`dqnet.pruning.build_pruning`.

    Attributes:
        networks: the model and, if there is one, its moving average.
    """

    def __init__(
        self,
        config: PruneConfig,
        model: nn.Module,
        average: nn.Module | None,
        image_shape: tuple[int, ...],
        updates: int,
    ) -> None:
        self.networks = [backbone(own) for own in (model, average) if own is not None]
        self.updates = updates
        if not prunable_layers(model):
            raise UserError("prune: the network has no convolution or fully connected layer")
        self._set_up(config, model, image_shape)

    def _set_up(self, config: PruneConfig, model: nn.Module, image_shape: tuple[int, ...]) -> None:
        """What a method does at the start; ``networks`` and ``updates`` are known."""

    def before_epoch(self) -> None:
        """Before the first step of an epoch, or the first after a stop within it."""

    def after_backward(self) -> None:
        """Between the gradients of a step and what is made of them."""

    def after_step(self, update: int) -> None:
        """After step number ``update`` of the whole training, from 0, moved weights and average."""

    def after_epoch(self) -> None:
        """After the last step of an epoch, before the network is evaluated."""

    def restore(self) -> None:
        """After something else than a step, such as rounding, has written weights."""

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on beside the weights."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what :meth:`state_dict` returned."""


def backbone(model: nn.Module) -> nn.Module:
    """The part that has a float network's names."""
    return model.backbone if isinstance(model, QuantizedModel) else model


def prunable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Convolutions and fully connected layers, quantized or not, by name in the float network.

    A layer that computes its weight from others, such as one with weight standardisation, is not
    one: a zero would not stay zero.
    """
    return {
        name: module
        for name, module in backbone(model).named_modules()
        if (type(module) in PLAIN_LAYERS or isinstance(module, QuantLayer))
        and "weight" in module._parameters
    }


def weight_sparsity(model: nn.Module) -> float:
    """The share of zeros among the float weights that can be pruned, in [0, 1]."""
    weights = [layer.weight for layer in prunable_layers(model).values()]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return zeros / sum(weight.numel() for weight in weights)


def ratios(config: PruneConfig, names: Collection[str], of: str) -> dict[str, float]:
    """The ratio of every layer: of the last pattern that matches, or else ``prune.ratio``.

    Args:
        config: the ratios.
        names: of the layers.
        of: what they have to be, for an error.

    Raises:
        UserError: for a ratio outside of [0, 1), or a pattern that matches none of the layers.
    """
    patterns = config.layers or {}
    if not isinstance(patterns, dict):
        raise UserError(f"prune.layers {patterns!r} is not a table of pattern: ratio")
    for pattern, ratio in {"prune.ratio": config.ratio, **patterns}.items():
        number = isinstance(ratio, int | float) and not isinstance(ratio, bool)
        if not number or not 0 <= ratio < 1:
            where = pattern if pattern == "prune.ratio" else f"prune.layers {pattern!r}:"
            raise UserError(f"{where} {ratio} must be in [0, 1): the share of weights that go")
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise unknown_name(f"prune.layers {of}", pattern, names)
    found = dict.fromkeys(names, float(config.ratio))
    for name in names:
        for pattern, ratio in patterns.items():
            if fnmatchcase(name, pattern):
                found[name] = float(ratio)
    return found


def smallest(values: Tensor, ratio: float) -> Tensor:
    """Where the ⌊ratio · n⌋ smallest of n values are, bool ``[n]``; among equals the first ones.

    Args:
        values: ``[n]``.
        ratio: in [0, 1), so that one is left.
    """
    count = min(int(ratio * len(values) + 1e-6), len(values) - 1)  # 0.29 · 100 is below 29
    mask = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    mask[values.argsort(stable=True)[:count]] = True
    return mask


@torch.no_grad()
def check_zero(layers: dict[str, nn.Module], fixed: bool) -> None:
    """Raises UserError for a quantized layer in which a zero weight would not be zero.

    Args:
        layers: that are pruned.
        fixed: whether the zeros are all there before quantizers see the weights.
    """
    seen = set()
    for name, layer in sorted(layers.items(), key=lambda pair: pair[1].weight.numel()):
        if not isinstance(layer, QuantLayer):
            continue
        quantizer = layer.weight_quantizer
        kind, formats = type(quantizer).__name__, ", ".join(map(str, quantizer.formats))
        if (kind, formats) in seen:
            continue
        seen.add((kind, formats))
        if quantizer.keeps_weight and not fixed:
            raise UserError(
                f"prune: {kind} assigns the weights of layer {name!r} to clusters once, so that "
                "none can become zero later: prune the float network, then prune=keep"
            )
        weight = layer.weight.detach().clone()
        weight[0] = 0  # at one place at least
        probe = copy.deepcopy(quantizer)
        probe.prepare(weight)
        if any((written[weight == 0] != 0).any() for written in probe.all_formats(weight)):
            raise UserError(
                f"prune: {kind} cannot write a zero in {formats} bits (layer {name!r}), so that "
                "pruned weights would not stay zero: use lsq or affine weights of 2 bits or more"
            )
