"""CIFAR ResNets whose stages reuse the features of their first block (G-Ghost).

Han et al., *GhostNets on Heterogeneous Devices via Cheap Operations*, IJCV 2022, section on G-Ghost
stages, https://arxiv.org/abs/2201.03297, in the form of the RegNets of the authors' code
(github.com/huawei-noah/Efficient-AI-Backbones): the first and the last block of a stage have the
full width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from dqnet.errors import UserError
from dqnet.models.resnet_cifar import BasicBlock, ResNetCifar, default_config


class GGhostStage(nn.Module):
    """A stage whose inner blocks make only the intrinsic channels.

    The first block's other channels become *ghost features*: a cheap operation on them, a 1 × 1
    convolution, plus what the *mix* makes of all blocks' features, pooled over the image.

    Args:
        in_channels, channels: of the stage.
        blocks: of the plain stage, from 2.
        stride: of the first block.
        act: makes an activation.
        ghosts: the share of channels that are ghost features, in (0, 1).
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        blocks: int,
        stride: int,
        act: Callable[[], nn.Module],
        ghosts: float = 0.5,
    ) -> None:
        super().__init__()
        own = channels - int(ghosts * channels)
        if not 0 < own < channels:
            raise UserError(
                f"ghosts {ghosts!r} leaves {own} of {channels} channels of a stage to its blocks; "
                "it is a share between 0 and 1, such as 0.5"
            )
        self.own, others = own, channels - own
        first = BasicBlock(in_channels, channels, stride, act)
        inner = [BasicBlock(own, own, 1, act) for _ in range(blocks - 2)]
        self.blocks = nn.ModuleList([first, *inner, BasicBlock(channels, channels, 1, act)])
        self.cheap = nn.Conv2d(others, others, 1, bias=False)
        self.cheap_norm = nn.BatchNorm2d(others)
        self.gathered = nn.Identity()  # what is between layers can be quantized by its name
        self.mix = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels + own * len(inner), others, 1, bias=False),
            nn.BatchNorm2d(others),
            act(),
            nn.Conv2d(others, others, 1, bias=False),
            nn.BatchNorm2d(others),
        )
        self.act = act()
        self.joined = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_channels, H, W]`` to ``[N, channels, H / stride, W / stride]``."""
        first, *inner, last = self.blocks
        x = first(x)
        features, own = [x], x[:, : self.own]
        for block in inner:
            own = block(own)
            features.append(own)
        mixed = self.mix(self.gathered(torch.cat(features, 1)))
        ghosts = self.act(self.cheap_norm(self.cheap(x[:, self.own :])) + mixed)
        return last(self.joined(torch.cat((own, ghosts), 1)))


#: read by timm's register_model
default_cfgs = generate_default_cfgs(
    {f"g_ghost_resnet{depth}_cifar.untrained": default_config() for depth in (20, 56)}
)


def _create(variant: str, pretrained: bool, ghosts: float = 0.5, **kwargs: Any) -> ResNetCifar:
    stage = partial(GGhostStage, ghosts=ghosts)
    return build_model_with_cfg(ResNetCifar, variant, pretrained, stage=stage, **kwargs)


@register_model
def g_ghost_resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-20 with G-Ghost stages, each of which has one inner block; 0.20 M parameters."""
    return _create("g_ghost_resnet20_cifar", pretrained, blocks=3, **kwargs)


@register_model
def g_ghost_resnet56_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-56 with G-Ghost stages, each of which has seven inner blocks; 0.36 M parameters."""
    return _create("g_ghost_resnet56_cifar", pretrained, blocks=9, **kwargs)
