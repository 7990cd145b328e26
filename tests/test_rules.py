"""The classifier is what the network says it is, of which there may be two or none."""

import pytest
import timm
import torch
from torch import nn

import dqnet
from dqnet.layers import QuantConv2d, QuantLinear


class Heads(nn.Module):
    """Classifiers that do not run last, as ``get_classifier`` returns them."""

    def __init__(self, returned):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.first = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 5))
        self.second, self.last = nn.Linear(8, 5), nn.Linear(5, 5)
        self.returned = returned

    def get_classifier(self):
        return self.returned(self)

    def forward(self, x):
        x = self.conv(self.stem(x).relu()).relu().mean((2, 3))
        return self.last(self.first(x) + self.second(x))


def in_full_precision(model):
    return {layer.name for layer in model.layers if layer.role == "full"}


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (lambda net: net.second, {"second"}),
        (lambda net: (net.first, net.second), {"first.1", "second"}),
        (lambda net: [net.second, net.last], {"second", "last"}),
        (lambda net: nn.Identity(), set()),
        (lambda net: None, set()),
    ],
)
def test_what_get_classifier_returns_is_in_full_precision(returned, expected):
    model = dqnet.quantize(Heads(returned), torch.zeros(2, 3, 8, 8), widths=(3,))
    assert in_full_precision(model) == {"stem", *expected}
    for name in ("first.1", "second", "last"):
        is_float = not isinstance(model.backbone.get_submodule(name), QuantLinear)
        assert is_float == (name in expected)


def test_first_last_8_is_of_both_classifiers():
    net = Heads(lambda net: (net.first, net.second))
    model = dqnet.quantize(net, torch.zeros(2, 3, 8, 8), widths=(3,), first_last=8)
    pinned = {layer.name for layer in model.layers if layer.pinned}
    assert pinned == {"stem", "first.1", "second"}


def test_both_classifiers_of_a_distilled_network_are_in_full_precision():
    net = timm.create_model("levit_conv_128s", num_classes=10)
    model = dqnet.quantize(net, torch.zeros(1, 3, 224, 224), widths=(3,))
    assert {"head.linear", "head_dist.linear"} <= in_full_precision(model)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050"])
def test_without_a_classifier_the_last_layer_is_quantized(name):
    net = timm.create_model(name, num_classes=0)
    model = dqnet.quantize(net, torch.zeros(1, 3, 32, 32), widths=(3,))
    assert len(in_full_precision(model)) == 1  # the first convolution
    assert isinstance(model.backbone.get_submodule(model.layers[-1].name), QuantConv2d)
