"""ResNets for 32 × 32 images: 20, 32, 44, 56 and 110 layers.

He et al., *Deep Residual Learning for Image Recognition*, 2015, section 4.2,
https://arxiv.org/abs/1512.03385, with the parameter-free shortcuts of option A. Module names are
those of the published weights of github.com/akamaster/pytorch_resnet_cifar10, which therefore load
unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import get_act_layer
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn


class SubsampleAndPad(nn.Module):
    """Option A: every second pixel, and zeros for the channels that are new."""

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.margin = new_channels // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.margin, self.margin))


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions and a shortcut around them."""

    def __init__(
        self, in_channels: int, channels: int, stride: int, act: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = act()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.act2 = act()
        grown = channels - in_channels
        self.shortcut = SubsampleAndPad(grown) if stride != 1 or grown else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.act2(y + self.shortcut(x))


def plain_stage(
    in_channels: int, channels: int, blocks: int, stride: int, act: Callable[[], nn.Module]
) -> nn.Sequential:
    """Basic blocks one after the other; the first one has the stride."""
    first = BasicBlock(in_channels, channels, stride, act)
    others = (BasicBlock(channels, channels, 1, act) for _ in range(blocks - 1))
    return nn.Sequential(first, *others)


class ResNetCifar(nn.Module):
    """Three stages of ``blocks`` basic blocks with 16, 32 and 64 channels.

    Args:
        blocks: blocks per stage; the network has 6 · blocks + 2 weighted layers.
        num_classes: outputs of the classifier.
        in_chans: channels of the images.
        act_layer: timm's name of the activation.
        stage: makes a stage of what :func:`plain_stage` takes.
    """

    def __init__(
        self,
        blocks: int,
        num_classes: int = 10,
        in_chans: int = 3,
        act_layer: str = "relu",
        stage: Callable[..., nn.Module] = plain_stage,
    ) -> None:
        super().__init__()
        act = get_act_layer(act_layer)
        self.num_classes = num_classes
        self.num_features = 64
        self.conv1 = nn.Conv2d(in_chans, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.act1 = act()
        self.layer1 = stage(16, 16, blocks, 1, act)
        self.layer2 = stage(16, 32, blocks, 2, act)
        self.layer3 = stage(32, 64, blocks, 2, act)
        self.linear = nn.Linear(64, num_classes)
        self.feature_info = [
            {"num_chs": 16, "reduction": 1, "module": "act1"},
            {"num_chs": 16, "reduction": 1, "module": "layer1"},
            {"num_chs": 32, "reduction": 2, "module": "layer2"},
            {"num_chs": 64, "reduction": 4, "module": "layer3"},
        ]
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's form of groups, for learning rates by depth: the stem, then stages or blocks."""
        block = r"^layer(\d+)" if coarse else r"^layer(\d+)\.(?:blocks\.)?(\d+)"
        return {"stem": r"^conv1|^bn1", "blocks": [(block, None)]}

    def get_classifier(self) -> nn.Module:
        return self.linear

    def forward_features(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to ``[N, 64, H/4, W/4]``."""
        x = self.act1(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x)))

    def forward_head(self, x: Tensor) -> Tensor:
        """``[N, 64, H, W]`` to logits ``[N, num_classes]``."""
        return self.linear(x.mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def default_config() -> dict[str, Any]:
    """What timm keeps beside a model."""
    return {
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "conv1",
        "classifier": "linear",
    }


#: read by timm's register_model
default_cfgs = generate_default_cfgs(
    {f"resnet{depth}_cifar.untrained": default_config() for depth in (20, 32, 44, 56, 110)}
)


def _create(variant: str, blocks: int, pretrained: bool, **kwargs: Any) -> ResNetCifar:
    return build_model_with_cfg(ResNetCifar, variant, pretrained, blocks=blocks, **kwargs)


@register_model
def resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-20, 0.27 M parameters."""
    return _create("resnet20_cifar", 3, pretrained, **kwargs)


@register_model
def resnet32_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-32, 0.46 M parameters."""
    return _create("resnet32_cifar", 5, pretrained, **kwargs)


@register_model
def resnet44_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-44, 0.66 M parameters."""
    return _create("resnet44_cifar", 7, pretrained, **kwargs)


@register_model
def resnet56_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-56, 0.85 M parameters."""
    return _create("resnet56_cifar", 9, pretrained, **kwargs)


@register_model
def resnet110_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-110, 1.7 M parameters."""
    return _create("resnet110_cifar", 18, pretrained, **kwargs)
