"""QuantLinear equals ``linear(Q(x), Q(w)) + bias``, at one width."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from comparison import random_tensor, relative_error
from textbook import quantize_input, quantize_weight
from torch import nn

from dqnet.errors import UserError
from dqnet.layers import QuantLinear


def double_linear(bias: bool = True) -> nn.Linear:
    linear = nn.Linear(7, 5, bias=bias).double()
    with torch.no_grad():
        for i, parameter in enumerate(linear.parameters()):
            parameter.copy_(random_tensor(*parameter.shape, seed=i))
    return linear


@pytest.mark.parametrize("name", ["dorefa", "pact", "lsq"])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("width", [1, 2, 4, 16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 7), (2, 4, 7), (0, 7)])
def test_equal_to_the_plain_formula(name, signed, width, bias, shape):
    options = {"alpha_init": 0.9} if name == "pact" else None
    layer = QuantLinear.from_float(double_linear(bias), (width,), name, signed, options).double()
    x = random_tensor(*shape, seed=5).requires_grad_()
    layer(x)  # LSQ's first batch sets its steps
    named = dict(layer.named_parameters()) | {"x": x}
    copies = {key: t.detach().clone().requires_grad_() for key, t in named.items()}
    parameters = {
        key.removeprefix("quantizer."): t for key, t in copies.items() if key.startswith("quant")
    }
    expected = F.linear(
        quantize_input(copies["x"], name, (width,), 0, signed, parameters),
        quantize_weight(copies["weight"], name, (width,), 0, parameters),
        copies.get("bias"),
    )
    actual = layer(x)
    assert relative_error(actual, expected) <= 1e-10
    upstream = random_tensor(*actual.shape, seed=6)
    gradients = torch.autograd.grad(actual, list(named.values()), upstream)
    expected_gradients = torch.autograd.grad(expected, list(copies.values()), upstream)
    for got, want in zip(gradients, expected_gradients, strict=True):
        assert relative_error(got, want) <= 1e-10


def test_several_widths_are_refused():
    with pytest.raises(UserError, match=r"static: one width, not \(2, 3\)"):
        QuantLinear(7, 5, widths=(2, 3))
    with pytest.raises(UserError, match="static"):
        QuantLinear.from_float(double_linear(), (2, 3))


@pytest.mark.parametrize("bias", [True, False])
def test_from_float_shares_the_very_parameters(bias):
    linear = double_linear(bias).eval()
    layer = QuantLinear.from_float(linear, (4,))
    assert layer.weight is linear.weight
    assert layer.bias is linear.bias
    assert not layer.training


def test_a_copy_gives_the_same_values():
    layer = QuantLinear.from_float(double_linear(), (3,), "lsq").double()
    x = random_tensor(4, 7, seed=5)
    assert torch.equal(layer(x), copy.deepcopy(layer)(x))


def test_bfloat16_autocast_is_close_to_float32():
    layer = QuantLinear.from_float(double_linear().float(), (4,))
    x = random_tensor(6, 7, seed=5).bfloat16().float()
    with torch.autocast("cpu", torch.bfloat16):
        actual = layer(x)
    assert actual.dtype == torch.bfloat16
    assert relative_error(actual, layer(x)) < 0.01
