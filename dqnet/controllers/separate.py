"""A small convolutional network of its own on the image: the ablation of Liu et al. 2022."""

from __future__ import annotations

from torch import nn

from dqnet.controllers.shared import OneValueBatchNorm2d, SharedController

#: channels of the three convolutions
CHANNELS = (8, 16, 32)


class SeparateController(SharedController):
    """Three strided convolutions on the image, then as the shared one."""

    def _build_body(self, channels: int) -> tuple[nn.Module, int]:
        layers: list[nn.Module] = []
        for out in CHANNELS:
            layers += [
                nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=False),
                OneValueBatchNorm2d(out),
                nn.ReLU(),
            ]
            channels = out
        return nn.Sequential(*layers), channels
