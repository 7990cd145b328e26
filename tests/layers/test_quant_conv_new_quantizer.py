"""A number format defined outside the package works in QuantConv2d by its name and by its class."""

from __future__ import annotations

import pytest
import torch
from comparison import float_conv, one_hot, random_tensor, relative_error
from torch import nn
from torch.func import functional_call

from dqnet.layers import QuantConv2d
from dqnet.quantizers import Quantizer

WIDTHS = (2, 4)


@pytest.fixture
def scaled() -> type[Quantizer]:
    """Values times a learned factor for each width, in a parameter of its own; no rounding."""

    class Scaled(Quantizer, name="scaled"):
        def __init__(self, widths, signed=False, start=1.0):
            super().__init__(widths, signed)
            self.factors = nn.ParameterList(
                nn.Parameter(torch.tensor(start + i)) for i in range(len(self.widths))
            )

        def quantize_weight(self, weight):
            return tuple(weight * width for width in self.widths)

        def quantize_input(self, x, width):
            return x * self.factors[self.widths.index(width)]

        def input_parameters(self):
            return list(self.factors)

    yield Scaled
    del Quantizer.registry["scaled"]


@pytest.mark.parametrize("by_name", [True, False], ids=["by name", "by class"])
@pytest.mark.parametrize("columns", [[0, 1, 1], [1, 1, 1]], ids=["mixed", "one width"])
def test_outputs_and_gradients_follow_the_new_format(scaled, by_name, columns):
    conv = float_conv(2, 3, 3, bias=False)
    layer = QuantConv2d.from_float(
        conv, WIDTHS, "scaled" if by_name else scaled, options={"start": 0.5}
    ).double()
    x = random_tensor(3, 2, 5, 5, seed=5).requires_grad_()
    choice = one_hot(columns, 2).requires_grad_()
    factors = list(layer.quantizer.factors)
    assert [f.item() for f in factors] == [0.5, 1.5]
    leaves = [x, choice, layer.weight, *factors]

    expected = sum(
        choice[:, k].view(-1, 1, 1, 1) * conv(x * factors[k]) * width
        for k, width in enumerate(WIDTHS)
    )
    actual = layer(x, choice)
    assert relative_error(actual, expected) <= 1e-10
    upstream = random_tensor(*actual.shape, seed=6)
    gradients = torch.autograd.grad(actual, leaves, upstream)
    expected_gradients = torch.autograd.grad(expected, leaves, upstream)
    for got, want in zip(gradients, expected_gradients, strict=True):
        assert relative_error(got, want) <= 1e-10


@pytest.mark.parametrize("name", ["scaled", "pact", "lsq"])
@pytest.mark.parametrize("leaves", [True, False], ids=["leaves", "computed"])
def test_gradients_are_to_the_parameters_of_the_forward_pass(scaled, name, leaves):
    """``functional_call`` puts others in their place for the forward pass alone."""
    layer = QuantConv2d.from_float(float_conv(2, 3, 3), WIDTHS, name).double()
    x, choice = 3 * random_tensor(2, 2, 5, 5, seed=5).abs(), one_hot([0, 1], 2)
    x.requires_grad_()
    layer(x, choice)  # LSQ's first batch
    given = {n: (0.3 * p).detach().requires_grad_() for n, p in layer.named_parameters()}
    passed = given if leaves else {n: 1 * p for n, p in given.items()}
    y = functional_call(layer, passed, (x, choice))
    actual = torch.autograd.grad(y.square().sum(), [x, *given.values()])

    layer.load_state_dict({n: p.detach() for n, p in given.items()}, strict=False)
    y = layer(x, choice)
    expected = torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
