"""Converted networks with weights and norms that hide no mistake."""

import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import dqnet


class Varied(nn.Module):
    """Strides, groups, dilation, pooling, concatenation, in 16 px.

    Args:
        norm: whether there is one that no layer can contain.
    """

    def __init__(self, norm=True):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.act1 = nn.ReLU6()
        self.pool = nn.MaxPool2d(3, 1, 1)
        self.conv2 = nn.Conv2d(8, 8, (3, 5), padding=(2, 4), dilation=2, groups=4, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.act2 = nn.ReLU()
        self.conv3 = nn.Conv2d(8, 4, 1)
        self.act3 = nn.ReLU()
        self.mean = nn.AvgPool2d(2)
        self.joined = nn.Identity()
        self.bn4 = nn.BatchNorm2d(12) if norm else nn.Identity()
        self.conv4 = nn.Conv2d(12, 6, 3, padding="same")
        self.act4 = nn.ReLU()
        self.fc = nn.Linear(6 * 16, 5)

    def forward(self, x):
        x = self.pool(self.act1(self.bn1(self.conv1(x))))
        y = self.act2(self.bn2(self.conv2(x)) + x)
        x = self.mean(self.joined(torch.cat((y, self.act3(self.conv3(y))), 1)))
        x = self.act4(self.conv4(self.bn4(x)))
        return self.fc(torch.flatten(x, 1))


def randomize(model, seed=0):
    """Norms of both signs; a channel that a norm switches off."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            nn.init.normal_(module.weight, generator=generator)
            nn.init.normal_(module.bias, generator=generator)
            nn.init.normal_(module.running_mean, generator=generator)
            nn.init.uniform_(module.running_var, 0.5, 2, generator=generator)
            module.weight.data[0] = 0
    return model


def images(count=4, size=16, seed=1):
    """Noise of rising contrast, so that images differ in their statistics."""
    contrast = torch.linspace(0.3, 2, count).view(-1, 1, 1, 1)
    noise = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
    return noise * contrast


def converted(name="varied", size=16, **how):
    """A calibrated network in evaluation mode."""
    torch.manual_seed(0)
    if name in ("varied", "foldable"):
        model = Varied(norm=name == "varied")
    else:
        model = timm.create_model(name, num_classes=5)
    model = dqnet.quantize(randomize(model), torch.zeros(1, 3, size, size), **how)
    dqnet.calibrate(model, [images(16, size, seed=2)])
    for module in model.modules():
        if isinstance(module, dqnet.layers.QuantLayer) and module.affine is not None:
            nn.init.normal_(module.affine.gain, 1, 0.2)
            nn.init.normal_(module.affine.shift, 0, 0.2)
    if model.controller is not None:  # as if trained: images differ in their routing
        nn.init.normal_(model.controller.fc2.weight, std=5.0)
    return model.eval()


#: what is exported, by what it is called in tests
STATIC = {
    "lsq3": {"quantizer": "lsq", "widths": [3]},
    "lsq8": {"quantizer": "lsq", "widths": [8], "first_last": 8},
    "affine8": {"quantizer": "affine", "widths": [8], "first_last": 8},
    "symmetric": {"quantizer": "symmetric", "widths": ["w4a8"], "first_last": 8},
    "folded": {"quantizer": "affine", "widths": [4], "fold_batch_norm": "corrected"},
    "fixed_point": {"quantizer": "fixed_point", "widths": [6], "first_last": 8},
    "qnn": {"quantizer": "qnn", "widths": ["w1a4"], "full_precision": ["conv1", "fc", "conv4"]},
    "dorefa1": {"quantizer": ("dorefa", "lsq"), "widths": ["w1a3"]},
    "dorefa7": {"quantizer": ("dorefa", "affine"), "widths": ["w7a8"], "first_last": "w7a8"},
    "pact": {"quantizer": "pact", "widths": [3], "full_precision": ["conv1", "fc", "conv4"]},
}
#: weights of 8-bit floats: form=exact alone
FLOAT8 = {
    name: {"quantizer": ("minifloat", "affine"), "widths": [f"w{name}a8"]}
    for name in ("e4m3", "e5m2")
}
