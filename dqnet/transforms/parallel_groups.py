"""PalQuant: parallel groups of low precision in the place of one network of a higher one.

Hu et al., *PalQuant: Accelerating High-precision Networks on Low-precision Accelerators*, 2022,
https://arxiv.org/abs/2208.01944. G networks of the given width run side by side, as one network
whose convolutions have G groups:

- the first convolution reads the image and has G times the filters; it is shared by nothing;
- every other convolution and batch norm has G times the channels, in G groups;
- behind every stage but the last a *cyclic shuffle* adds to each group what a 1 × 1 convolution,
  batch norm and ReLU make of its neighbour: ``x_g + h_g(x_{g+1 mod G})``;
- the classifier reads all groups, and so sums what G classifiers would say.

With b bits the whole costs G · b² · MACs in Bit-FLOPs, and G · b bits for each weight of the plain
network, besides the shuffles: four groups of 2 bits cost as much as one network of 4 bits, two of
them are as large. The network is trained from scratch, as in the paper.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dqnet.dataflow import dataflow
from dqnet.errors import UserError, unknown_name
from dqnet.module_swap import swap_modules
from dqnet.split import listed_stages
from dqnet.trace import Trace, evaluating, trace_model
from dqnet.transforms.base import transform


class CyclicShuffle(nn.Module):
    """Each group of channels and what its neighbour tells it, ``[N, C, H, W]`` to the same."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.permute = CyclicPermute(channels // groups)
        self.conv = nn.Conv2d(channels, channels, 1, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()
        nn.init.kaiming_normal_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.act(self.norm(self.conv(self.permute(x))))


class CyclicPermute(nn.Module):
    """Puts every group of ``width`` channels in the place of the one before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x[:, self.width :], x[:, : self.width]), 1)


class EachGroup(nn.Module):
    """A module without parameters on each group of ``width`` channels by itself."""

    def __init__(self, module: nn.Module, groups: int, width: int) -> None:
        super().__init__()
        self.module, self.groups, self.width = module, groups, width

    def forward(self, x: Tensor) -> Tensor:
        starts = range(0, self.groups * self.width, self.width)
        return torch.cat([self.module(x[:, start : start + self.width]) for start in starts], 1)


@transform("parallel_groups")
@dataclass(frozen=True)
class ParallelGroups:
    """A network of parallel groups.

    Attributes:
        groups: G, from 2.
        widen: whether each group has the given network's width (the paper); ``False``: its
            channels are divided among the groups.
        shuffle_after: names of modules behind which groups exchange features; ``None``: every stage
            that the model lists but the last; empty: nowhere.
    """

    from_scratch: ClassVar[bool] = True

    groups: int
    widen: bool = True
    shuffle_after: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if type(self.groups) is not int or self.groups < 2:
            raise UserError(
                f"groups {self.groups!r} of parallel_groups must be a whole number from 2"
            )

    def __call__(self, model: nn.Module, sample_input: Tensor) -> None:
        """See :class:`~dqnet.transforms.base.Transform`.

        Weights are drawn anew, normally distributed with the spread of the given network's (scaled
        with the number of inputs, where that changes).
        """
        trial = copy.deepcopy(model)  # so that what fails leaves the model as it was
        self._change(trial, sample_input)
        try:
            with torch.no_grad(), evaluating(trial):
                trial(sample_input)
        except RuntimeError as error:
            line = str(error).partition("\n")[0]
            raise UserError(f"parallel_groups is for plain CNNs; this one fails: {line}") from error
        vars(model).update(vars(trial))

    @torch.no_grad()
    def _change(self, model: nn.Module, sample_input: Tensor) -> None:
        if any(call.name == "aten.cat" for call in dataflow(model, sample_input).calls[None]):
            raise UserError(
                "parallel_groups is for networks that concatenate no features, whose groups would "
                "be taken apart"
            )
        trace = trace_model(model, sample_input, signs=False)
        swaps: dict[nn.Module, nn.Module] = {}
        for name, layer in trace.layers.items():
            module = model.get_submodule(name)
            if isinstance(module, nn.Linear):
                continue
            if type(module) not in (nn.Conv2d, Conv2dSame):
                kind = type(module).__name__
                raise UserError(f"layer {name!r} is a {kind}, which parallel_groups has no form of")
            swaps[module] = self._conv(name, module, first=layer.reads_images)
        if self.widen:
            swaps |= self._classifier(model, trace)
            swaps |= {m: self._norm(m) for m in model.modules() if isinstance(m, _BatchNorm)}
        for module, (name, width) in _changing_channels(model, sample_input).items():
            if not self.widen:
                raise UserError(
                    f"{name!r} adds channels, which cannot be divided among groups: widen=true"
                )
            swaps[module] = EachGroup(module, self.groups, width)
        swap_modules(model, swaps)
        self._add_shuffles(model, trace)

    def _conv(self, name: str, conv: nn.Conv2d, first: bool) -> nn.Conv2d:
        """A convolution of all groups; the first one reads the image, which has none."""
        times = self.groups if self.widen else 1
        made = copy.deepcopy(conv)
        made.out_channels = conv.out_channels * times
        if not first:
            made.in_channels = conv.in_channels * times
            made.groups = conv.groups * self.groups
            if 1 < conv.groups == conv.in_channels:  # depthwise
                made.groups = made.in_channels
        for channels in (made.in_channels, made.out_channels):
            if channels % (1 if first else made.groups):
                raise UserError(
                    f"layer {name!r} has {channels} channels, which cannot be divided among "
                    f"{self.groups} groups"
                )
        inputs = made.in_channels // made.groups
        _redraw(made, made.out_channels, inputs, *conv.kernel_size)
        return made

    def _norm(self, norm: _BatchNorm) -> _BatchNorm:
        made = copy.deepcopy(norm)
        made.num_features *= self.groups
        for tensor in (*made.parameters(recurse=False), *made.buffers(recurse=False)):
            if tensor.dim():  # not the counter of batches
                tensor.data = tensor.data.repeat(self.groups)
        return made

    def _classifier(self, model: nn.Module, trace: Trace) -> dict[nn.Module, nn.Module]:
        """The first fully connected layer, which reads the features of all groups."""
        kinds = [type(model.get_submodule(name)) for name in trace.layers]
        linear = [name for name in trace.layers if type(model.get_submodule(name)) is nn.Linear]
        if not linear or nn.Conv2d in kinds[kinds.index(nn.Linear) :]:
            raise UserError(
                "parallel_groups needs fully connected layers behind all convolutions, to read all "
                "groups"
            )
        layer = model.get_submodule(linear[0])
        made = copy.deepcopy(layer)
        made.in_features *= self.groups
        _redraw(made, made.out_features, made.in_features)
        return {layer: made}

    def _add_shuffles(self, model: nn.Module, trace: Trace) -> None:
        names = self.shuffle_after
        if names is None:
            names = _stages(model, trace)[:-1]
        for name in names:
            shape = trace.shapes.get(name, ())
            if len(shape) != 4:
                raise unknown_name("module with feature maps", name, trace.shapes)
            channels = shape[1] * (self.groups if self.widen else 1)
            if channels % self.groups:
                raise UserError(
                    f"{name!r} has {channels} channels, which cannot be divided among "
                    f"{self.groups} groups"
                )
            shuffle = CyclicShuffle(channels, self.groups).to(next(model.parameters()))
            stage = model.get_submodule(name)
            if type(stage) is nn.Sequential:
                stage.add_module("shuffle", shuffle)  # names inside the stage stay
            else:
                both = OrderedDict(module=stage, shuffle=shuffle)
                swap_modules(model, {stage: nn.Sequential(both)})


def _stages(model: nn.Module, trace: Trace) -> list[str]:
    """The stages that a model lists, without a stem whose one convolution reads the image."""
    first_grouped = sorted(layer.order for layer in trace.layers.values())[1]
    found = [name for name in listed_stages(model) if trace.finished[name] > first_grouped]
    if len(found) < 2:
        raise UserError(
            "the model does not list its stages: name the modules behind which parallel groups "
            "exchange features with shuffle_after=[NAME, ...]"
        )
    return found


def _redraw(layer: nn.Conv2d | nn.Linear, *shape: int) -> None:
    """Gives a layer a weight of another shape, of the spread that its initialisation had."""
    old = layer.weight
    weight = old.new_empty(shape)
    std = old.std() * math.sqrt(old[0].numel() / weight[0].numel())
    layer.weight = nn.Parameter(weight.normal_(0, std.item()))
    if layer.bias is not None:
        layer.bias = nn.Parameter(old.new_zeros(shape[0]))


def _changing_channels(model: nn.Module, sample_input: Tensor) -> dict[nn.Module, tuple[str, int]]:
    """Modules without parameters that return feature maps of more or fewer channels than they
    read, and would do otherwise to a group than to all: their names and what they read."""
    found: dict[nn.Module, tuple[str, int]] = {}

    def compare(name: str, module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        before, after = args[0].shape, output.shape
        if len(before) == len(after) == 4 and before[1] != after[1]:
            found[module] = name, before[1]

    leaves = {
        name: module
        for name, module in model.named_modules()
        if not [*module.parameters(), *module.children()]
    }
    handles = [m.register_forward_hook(partial(compare, name)) for name, m in leaves.items()]
    try:
        with evaluating(model):
            model(sample_input)
    finally:
        for handle in handles:
            handle.remove()
    return found
