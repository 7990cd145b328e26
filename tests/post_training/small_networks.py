"""A network of six layers that has seen some images."""

import torch
from torch import nn

import dqnet


def small():
    """With depthwise and fully connected layers; every layer has a bias."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU(),
        nn.Conv2d(8, 16, 1), nn.ReLU(),
        nn.Conv2d(16, 8, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 5),
    )  # fmt: skip


def batches(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 3, 8, 8, generator=generator) for size in sizes]


def calibrated(widths=(4,), quantizer="affine"):
    model = dqnet.quantize(
        small(), torch.zeros(1, 3, 8, 8), widths, quantizer, shared_until="1", full_precision=[]
    )
    dqnet.calibrate(model, batches(32))
    return model
