"""Ghost modules: part of a convolution's output channels come from cheap operations.

Han et al., *GhostNet: More Features from Cheap Operations*, CVPR 2020,
https://arxiv.org/abs/1911.11907, equations 2 and 3; the C-Ghost module of Han et al., *GhostNets on
Heterogeneous Devices via Cheap Operations*, IJCV 2022, https://arxiv.org/abs/2201.03297.

A convolution to ``C`` channels becomes a primary one to ``m = ceil(C / ratio)`` channels, and a
depthwise one of ``kernel`` × ``kernel`` that makes ``ratio - 1`` more of each of these; both are
concatenated and cut to ``C``. As in the authors' modules each of the two convolutions has a batch
norm behind it, where the convolution had one of its own; the activation stays where it was, behind
both. The cheap operation is linear in the intrinsic features (equation 3): it reads them before
the activation, and after their norm, so that both norms fold into the convolutions before them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dqnet.dataflow import Dataflow, dataflow
from dqnet.errors import UserError, unknown_name
from dqnet.fold import rest_of_norm
from dqnet.module_swap import swap_modules
from dqnet.norm_pairs import norm_pairs
from dqnet.rules import matches
from dqnet.trace import trace_model
from dqnet.transforms.base import transform


class GhostConv2d(nn.Module):
    """A primary convolution and a cheap operation on its output, concatenated.

    Args:
        primary: ``[N, in, H, W]`` to ``[N, m, H', W']``.
        primary_norm: of the intrinsic features.
        cheap: depthwise, from these to the ghost features.
        cheap_norm: of the ghost features.
        ghosts: how many of the ghost features are kept.
    """

    def __init__(
        self,
        primary: nn.Conv2d,
        primary_norm: nn.Module,
        cheap: nn.Conv2d,
        cheap_norm: nn.Module,
        ghosts: int,
    ) -> None:
        super().__init__()
        self.primary, self.primary_norm = primary, primary_norm
        self.cheap, self.cheap_norm = cheap, cheap_norm
        self.ghosts = ghosts

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in, H, W]`` to ``[N, m + ghosts, H', W']``."""
        intrinsic = self.primary_norm(self.primary(x))
        ghosts = self.cheap_norm(self.cheap(intrinsic))
        if self.ghosts < self.cheap.out_channels:
            ghosts = ghosts[:, : self.ghosts]
        return torch.cat((intrinsic, ghosts), 1)


@transform("ghost")
@dataclass(frozen=True)
class Ghost:
    """Ghost modules in the place of plain convolutions.

    Attributes:
        ratio: the paper's s, from 2: one in so many channels is intrinsic.
        kernel: the paper's d, odd: of the cheap operations.
        layers: patterns of layers to replace; ``None``: every convolution of one group but the
            first, a ResNet's shortcuts of 1 × 1 and the gates of squeeze-and-excite.
    """

    from_scratch: ClassVar[bool] = False

    ratio: int = 2
    kernel: int = 3
    layers: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if type(self.ratio) is not int or self.ratio < 2:
            raise UserError(f"ratio {self.ratio!r} of ghost must be a whole number from 2")
        if type(self.kernel) is not int or self.kernel < 1 or self.kernel % 2 == 0:
            raise UserError(f"kernel {self.kernel!r} of ghost must be odd, such as 3")

    @torch.no_grad()
    def __call__(self, model: nn.Module, sample_input: Tensor) -> None:
        """See :class:`~dqnet.transforms.base.Transform`.

        Intrinsic channels are the first m of each layer and keep their filters. That they are the
        first is part of the structure, so that a concatenation alone puts every channel where its
        readers expect it. Cheap operations start at random, as in a training from scratch: filters
        of a trained network are no cheap operation's results (docs/compression.md has figures).
        """
        flow = dataflow(model, sample_input)
        norm_of = norm_pairs(model, flow).norm_of
        swaps: dict[nn.Module, nn.Module] = {}
        for name in self._chosen(model, sample_input, flow, norm_of):
            conv, norm = model.get_submodule(name), None
            if name in norm_of:
                norm = model.get_submodule(norm_of[name])
                swaps[norm] = rest_of_norm(norm)
            swaps[conv] = self._module(conv, norm)
        swap_modules(model, swaps)

    def _chosen(
        self, model: nn.Module, sample_input: Tensor, flow: Dataflow, norm_of: Mapping[str, str]
    ) -> list[str]:
        trace = trace_model(model, sample_input, signs=False)
        convs = {name: model.get_submodule(name) for name in trace.layers}
        plain = [
            name
            for name, conv in convs.items()
            if type(conv) in (nn.Conv2d, Conv2dSame) and conv.groups == 1 and conv.out_channels > 1
        ]
        if self.layers is None:
            first = next(iter(trace.layers), None)
            pointwise = {name for name in plain if convs[name].kernel_size == (1, 1)}
            # as in squeeze-and-excite; norms stand behind what reads feature maps
            gates = {n for n in pointwise if n not in norm_of and trace.layers[n].one_vector}
            around = {name for name in pointwise if _is_shortcut(convs[name], flow)}
            found = [name for name in plain if name not in {first, *gates, *around}]
        else:
            for pattern in self.layers:
                if not any(matches(name, (pattern,)) for name in plain):
                    raise unknown_name("layer of ghost", pattern, plain)
            found = [name for name in plain if matches(name, self.layers)]
        if not found:
            raise UserError("ghost finds no plain convolution to replace")
        return found

    def _module(self, conv: nn.Conv2d, norm: _BatchNorm | None) -> GhostConv2d:
        own = math.ceil(conv.out_channels / self.ratio)
        primary = copy.deepcopy(conv)
        primary.out_channels = own
        primary.weight = nn.Parameter(conv.weight[:own].clone())
        if conv.bias is not None:
            primary.bias = nn.Parameter(conv.bias[:own].clone())
        cheap = nn.Conv2d(
            own,
            own * (self.ratio - 1),
            self.kernel,
            padding=self.kernel // 2,
            groups=own,
            bias=conv.bias is not None,
        ).to(conv.weight)
        norms = nn.Identity(), nn.Identity()
        if norm is not None:
            norms = _part(norm, 0, own), _part(norm, own, cheap.out_channels)
        return GhostConv2d(primary, norms[0], cheap, norms[1], conv.out_channels - own)


def _is_shortcut(conv: nn.Conv2d, flow: Dataflow) -> bool:
    """Whether it is a way around others: what it reads, another convolution reads as well, and what
    it returns is added to something."""
    calls = flow.calls[conv]
    if len(calls) != 1:
        return False
    (call,) = calls
    users = flow.users[call.outputs[0]]
    if len(users) == 1 and isinstance(users[0].module, _BatchNorm):
        users = flow.users[users[0].outputs[0]]
    added = any(user.name in ("aten.add", "aten.add_") for user in users)
    others = [user.module for user in flow.users[call.inputs[0]] if user is not call]
    return added and any(isinstance(other, nn.Conv2d) for other in others)


def _part(norm: _BatchNorm, start: int, count: int) -> nn.BatchNorm2d:
    """A norm of ``count`` channels, from ``start`` on those of another one as far as it goes."""
    part = nn.BatchNorm2d(count, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    part.to(next(tensor for tensor in norm.state_dict().values() if tensor.is_floating_point()))
    theirs = norm.state_dict()
    for name, tensor in part.state_dict().items():
        if tensor.dim():
            values = theirs[name][start : start + count]
            tensor[: len(values)] = values
    return part
