"""A method defined outside the package works in layers and networks, by its name and its class."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from comparison import float_conv, one_hot, random_tensor, relative_error
from torch import nn
from torch.func import functional_call

import dqnet
from dqnet.errors import UserError
from dqnet.layers import QuantConv2d
from dqnet.quantizers import Quantizer

WIDTHS = (2, 4)


@pytest.fixture
def scaled() -> type[Quantizer]:
    """Values times a learned factor for each format, in a parameter of its own; no rounding."""

    class Scaled(Quantizer, name="scaled"):
        def __init__(self, formats, *, start=1.0, **kwargs):
            super().__init__(formats, **kwargs)
            self.factors = nn.ParameterList(
                nn.Parameter(torch.tensor(start + i)) for i in range(len(self.formats))
            )

        def forward(self, x, k):
            return x * self.factors[k]

    yield Scaled
    del Quantizer.registry["scaled"]


@pytest.mark.parametrize("by_name", [True, False], ids=["by name", "by class"])
@pytest.mark.parametrize("columns", [[0, 1, 1], [1, 1, 1]], ids=["mixed", "one width"])
def test_outputs_and_gradients_follow_the_new_method(scaled, by_name, columns):
    conv = float_conv(2, 3, 3, bias=False)
    layer = QuantConv2d.from_float(
        conv, WIDTHS, "scaled" if by_name else scaled, options={"start": 0.5}
    ).double()
    x = random_tensor(3, 2, 5, 5, seed=5).requires_grad_()
    choice = one_hot(columns, 2).requires_grad_()
    of_weight, of_input = ([*q.factors] for q in (layer.weight_quantizer, layer.input_quantizer))
    assert [f.item() for f in of_input] == [0.5, 1.5]
    leaves = [x, choice, layer.weight, *of_weight, *of_input]

    expected = sum(
        choice[:, k].view(-1, 1, 1, 1) * conv(x * of_input[k]) * of_weight[k] for k in range(2)
    )
    actual = layer(x, choice)
    assert relative_error(actual, expected) <= 1e-10
    upstream = random_tensor(*actual.shape, seed=6)
    gradients = torch.autograd.grad(actual, leaves, upstream)
    expected_gradients = torch.autograd.grad(expected, leaves, upstream)
    for got, want in zip(gradients, expected_gradients, strict=True):
        assert relative_error(got, want) <= 1e-10


class MaxScaled(Quantizer):
    """The whole of a new method: symmetric, its scale the largest magnitude seen; learned."""

    def __init__(self, formats, **kwargs):
        super().__init__(formats, **kwargs)
        self.top = nn.Parameter(torch.ones(()))
        self._seen = 0.0

    def observe(self, x):
        self._seen = max(self._seen, x.abs().max().item())

    def finish(self):
        self.top.fill_(self._seen)

    def forward(self, x, k):
        scale = self.top.abs() / 2 ** (self.formats[k].bits - 1)
        levels = x / scale
        return (levels + (levels.round() - levels).detach()).clamp(
            -(2 ** (self.formats[k].bits - 1)), 2 ** (self.formats[k].bits - 1) - 1
        ) * scale


@pytest.mark.parametrize("widths", [(3,), (2, 3, 4), ("w2a4", "w4a4", "w2a8")], ids=str)
@pytest.mark.parametrize("calibrated", [True, False])
def test_a_new_method_of_one_tensor_trains_in_a_network_without_registration(widths, calibrated):
    torch.manual_seed(0)
    net = timm.create_model("resnet20_cifar", num_classes=4)
    model = dqnet.quantize(net, torch.zeros(1, 3, 8, 8), widths, quantizer=MaxScaled)
    images, labels = torch.randn(16, 3, 8, 8), torch.arange(16) % 4
    if calibrated:
        dqnet.calibrate(model, [images])
        tops = [m.top.item() for m in model.modules() if isinstance(m, MaxScaled)]
        assert 1.0 not in tops
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    losses = []
    for _ in range(12):
        logits, routing = model(images)
        loss = F.cross_entropy(logits, labels)
        if routing.shape[1]:
            loss = loss + dqnet.bit_flops(model, routing).mean() / dqnet.static_bit_flops(model, 3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    moved = [p.grad for n, p in model.named_parameters() if n.endswith("_quantizer.top")]
    assert len(moved) == 2 * 18 and all(g is not None for g in moved)


@pytest.mark.parametrize("name", ["pact", "lsq"])
def test_other_parameters_than_in_the_forward_pass_are_refused(name):
    """``functional_call`` puts others in their place for the forward pass alone."""
    layer = QuantConv2d.from_float(float_conv(2, 3, 3), WIDTHS, name).double()
    x, choice = 3 * random_tensor(2, 2, 5, 5, seed=5).abs(), one_hot([0, 1], 2)
    layer(x, choice)  # LSQ's first batch
    given = {n: (0.3 * p).detach().requires_grad_() for n, p in layer.named_parameters()}
    y = functional_call(layer, given, (x, choice))
    with pytest.raises(UserError, match="functional_call"):
        y.sum().backward()
