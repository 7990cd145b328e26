"""A small network with a residual block, its layers all candidates, and labelled images."""

import torch
from torch import nn

import dqnet
from dqnet.costs import find_cost
from dqnet.costs.network import check_target
from dqnet.search.base import Problem


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 6, 3, stride=2)
        self.shortcut = nn.Conv2d(4, 6, 3, stride=2)
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        x = self.act(self.norm(self.stem(x)))
        y = self.second(self.act(self.first(x)))
        y += self.shortcut(x)
        return self.fc(self.act(y).mean((2, 3)))


class Data(Small):
    """One that cannot be traced: what it does depends on its values."""

    def forward(self, x):
        return super().forward(x if x.sum() > -1e9 else -x)


def searchable(widths=(2, 4, 8), cls=Small, quantizer="affine", images=24, seed=0, **options):
    """A converted network of four routed layers, and its held-out batches."""
    torch.manual_seed(seed)
    rules = {"fc": "full"} | options.pop("layers", {})
    model = dqnet.quantize(
        cls(), torch.zeros(1, 2, 9, 9), widths, quantizer, None, first_last=8, static=(),
        layers={"stem": list(widths)} | rules, width_affine=False,
        controller=dqnet.ControllerConfig(kind="table"), **options,
    )  # fmt: skip
    x = torch.randn(images, 2, 9, 9)
    model.eval()
    dqnet.calibrate(model, [x])
    labels = torch.randint(3, (images,))
    return model, list(zip(x.split(10), labels.split(10), strict=True))


def problem(model, batches, bits=4, cost="bit_flops", **more):
    price = find_cost(cost)
    target = None if bits is None else check_target(model, bits, by=price)
    return Problem(model, batches, price, target, **more)


def answers(model, batches, chosen):
    """What the network answers with these choices, without anything kept."""
    layers = [model.backbone.get_submodule(own.name) for own in model.routed_layers]
    parts = []
    for layer, k in zip(layers, chosen, strict=True):
        layer.unquantized = k is None
    for images, _ in batches:
        routing = torch.zeros(len(images), len(chosen), len(model.precisions))
        for i, k in enumerate(chosen):
            routing[:, i, k or 0] = 1
        parts.append(model(images, routing=routing).logits.detach())
    for layer in layers:
        layer.unquantized = False
    return torch.cat(parts)
