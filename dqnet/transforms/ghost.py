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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
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
        channels: how many of all features are kept.
    """

    def __init__(
        self,
        primary: nn.Conv2d,
        primary_norm: nn.Module,
        cheap: nn.Conv2d,
        cheap_norm: nn.Module,
        channels: int,
    ) -> None:
        super().__init__()
        self.primary, self.primary_norm = primary, primary_norm
        self.cheap, self.cheap_norm = cheap, cheap_norm
        self.channels = channels
        self.cuts = primary.out_channels + cheap.out_channels > channels

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in, H, W]`` to ``[N, channels, H', W']``."""
        intrinsic = self.primary_norm(self.primary(x))
        features = torch.cat((intrinsic, self.cheap_norm(self.cheap(intrinsic))), 1)
        return features[:, : self.channels] if self.cuts else features


@transform("ghost")
@dataclass(frozen=True)
class Ghost:
    """Ghost modules in the place of plain convolutions.

    Attributes:
        ratio: the paper's s, from 2: one in so many channels is intrinsic.
        kernel: the paper's d, odd: of the cheap operations.
        layers: patterns of layers to replace; ``None``: every convolution of one group but the
            first and those of 1 × 1 (a ResNet's shortcuts), where cheap operations of 3 × 3 save
            little.
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
    def __call__(self, model: nn.Module, sample_input: Tensor, trained: bool) -> None:
        """See :class:`~dqnet.transforms.base.Transform`.

        Intrinsic channels are the first m of each layer: which ones they are is part of the
        structure, so that a concatenation alone puts every channel where its readers expect it.
        They keep their filters. A cheap operation starts as that whose composition with the
        intrinsic channel's filter is nearest to the filter that it replaces, if these are trained.
        """
        flow = dataflow(model, sample_input)
        norm_of = norm_pairs(model, flow).norm_of
        swaps: dict[nn.Module, nn.Module] = {}
        for name in self._chosen(model, sample_input, flow):
            conv, norm = model.get_submodule(name), None
            if name in norm_of:
                norm = model.get_submodule(norm_of[name])
                swaps[norm] = rest_of_norm(norm)
            swaps[conv] = self._module(conv, norm, trained)
        swap_modules(model, swaps)

    def _chosen(self, model: nn.Module, sample_input: Tensor, flow: Dataflow) -> list[str]:
        trace = trace_model(model, sample_input, signs=False)
        convs = {name: model.get_submodule(name) for name in trace.layers}
        plain = [
            name
            for name, conv in convs.items()
            if type(conv) in (nn.Conv2d, Conv2dSame) and conv.groups == 1 and conv.out_channels > 1
        ]
        if self.layers is None:
            first = next(iter(trace.layers), None)
            found = [
                name
                for name in plain
                if name != first
                and not trace.layers[name].one_vector  # squeeze-and-excite
                and not _is_shortcut(convs[name], flow)
            ]
        else:
            for pattern in self.layers:
                if not any(matches(name, (pattern,)) for name in plain):
                    raise unknown_name("layer of ghost", pattern, plain)
            found = [name for name in plain if matches(name, self.layers)]
        if not found:
            raise UserError("ghost finds no plain convolution to replace")
        return found

    def _module(self, conv: nn.Conv2d, norm: _BatchNorm | None, trained: bool) -> GhostConv2d:
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
        made = GhostConv2d(primary, norms[0], cheap, norms[1], conv.out_channels)
        if trained:
            _fit(made, conv)
        return made


def _is_shortcut(conv: nn.Conv2d, flow: Dataflow) -> bool:
    """Whether it is a 1 × 1 convolution around others: what it reads, another layer reads as well,
    and what it returns is added to something."""
    calls = flow.calls[conv]
    if conv.kernel_size != (1, 1) or len(calls) != 1:
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


def _fit(ghost: GhostConv2d, conv: nn.Conv2d) -> None:
    """Sets cheap operations so that ghost features are what they were, as nearly as possible.

    That is the least-squares fit of ``Σ_t k_t · shift_t(f)``, over taps t, to the replaced filter,
    with f the intrinsic channel's filter, its norm included. What the norm adds to each pixel is
    taken off again in the bias or the next norm.
    """
    own = ghost.primary.out_channels
    kept = conv.out_channels - own
    scale, shift = _affine(ghost.primary_norm, conv.weight.new_zeros(own))
    sources = torch.arange(kept, device=scale.device) // (ghost.cheap.out_channels // own)
    filters = (conv.weight[:own].double() * scale.view(-1, 1, 1, 1))[sources]
    taps = fitted_taps(filters, conv.weight[own:].double(), ghost.cheap.kernel_size[0], conv)
    ghost.cheap.weight.zero_()
    ghost.cheap.weight[:kept] = taps[:, None].to(conv.weight)
    if conv.bias is not None:
        shift = shift + scale * conv.bias[:own]
    offsets = (taps.sum((1, 2)) * shift[sources]).to(conv.weight)
    if conv.bias is not None:
        ghost.cheap.bias.zero_()
        ghost.cheap.bias[:kept] = conv.bias[own:] - offsets
    elif isinstance(ghost.cheap_norm, nn.BatchNorm2d):
        ghost.cheap_norm.running_mean[:kept] += offsets


def fitted_taps(filters: Tensor, targets: Tensor, size: int, conv: nn.Conv2d) -> Tensor:
    """Depthwise kernels whose composition with ``filters`` is nearest to ``targets``.

    Args:
        filters, targets: of G channels, ``[G, in, h, w]``, in double precision.
        size: of the depthwise kernel.
        conv: the convolution whose stride and dilation the filters have.

    Returns:
        Taps ``[G, size, size]``; of several least-squares solutions the smallest.
    """
    reach, (down, right), (high, wide) = size // 2, conv.stride, conv.dilation
    spread = filters.new_zeros(
        *filters.shape[:2],
        (filters.shape[2] - 1) * high + 1,
        (filters.shape[3] - 1) * wide + 1,
    )
    target = spread.clone()
    spread[..., ::high, ::wide], target[..., ::high, ::wide] = filters, targets
    target = F.pad(target, (reach * right,) * 2 + (reach * down,) * 2)
    shifted = torch.stack(
        [
            F.pad(spread, (x * right, (size - 1 - x) * right, y * down, (size - 1 - y) * down))
            for y in range(size)
            for x in range(size)
        ]
    )
    gram = torch.einsum("agihw,bgihw->gab", shifted, shifted)
    moments = torch.einsum("agihw,gihw->ga", shifted, target)
    taps = torch.linalg.pinv(gram, rtol=1e-9, hermitian=True) @ moments[..., None]
    return taps.view(-1, size, size)


def _affine(norm: nn.Module, zeros: Tensor) -> tuple[Tensor, Tensor]:
    """What a norm, or none, multiplies each of some channels by, and adds, in evaluation."""
    norm, zero = copy.deepcopy(norm).double().eval(), zeros[None, :, None, None].double()
    shift = norm(zero).flatten()
    return norm(zero + 1).flatten() - shift, shift
