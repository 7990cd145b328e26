"""A network's operations are those that its code calls; what has no fixed graph is named."""

from collections import Counter

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from dqnet.errors import UserError
from dqnet.graph import operations


def kinds(model, size=32):
    return Counter(step.kind for step in operations(model, (3, size, size)).steps)


@pytest.mark.parametrize(
    ("name", "additions", "layers"),
    [("resnet20_cifar", 9, 20), ("resnet18", 8, 21), ("mobilenetv2_100", 10, 53)],
)
def test_additions_and_layers_of_known_networks(name, additions, layers):
    """As many as their papers say: two or three layers to a block, one addition to a residual."""
    found = kinds(timm.create_model(name))
    assert (found["add"], found["layer"]) == (additions, layers)
    assert found["other"] == 0


class Everything(nn.Module):
    """An operation of each kind."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.pool = nn.MaxPool2d(2)
        self.drop = nn.Dropout()
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        y = self.drop(F.relu(self.norm(self.conv(x))))
        y = torch.cat((self.pool(y), F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0))), 1)
        y = F.relu6(y)
        y += y
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(y, 1), 1))


def test_every_kind_is_found():
    found = [step.kind for step in operations(Everything(), (3, 8, 8)).steps]
    assert found == [
        "image", "layer", "norm", "clip", "max_pool", "slice", "pad", "concat", "clip",
        "other", "mean", "flatten", "layer",
    ]  # fmt: skip


def test_a_value_knows_the_modules_that_return_it():
    steps = operations(timm.create_model("resnet20_cifar"), (3, 32, 32)).steps
    (last,) = [step for step in steps if "layer2" in step.result_of]
    assert last.kind == "clip" and last.result_of[:2] == ["layer2.2.act2", "layer2.2"]
    assert last.shape == (32, 16, 16)


class Decides(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3)))


def test_a_network_that_decides_by_values_is_refused_by_name():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), Decides())
    with pytest.raises(UserError, match=r"module '1' \(Decides\) cannot be traced") as raised:
        operations(model, (3, 8, 8))
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=r"module 'Decides' \(the model itself\)"):
        operations(Decides(), (3, 8, 8))


def test_the_model_is_left_as_it_was():
    model = timm.create_model("resnet20_cifar").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    operations(model, (3, 32, 32))
    assert model.training and not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
