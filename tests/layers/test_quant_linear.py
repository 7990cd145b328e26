"""QuantLinear equals ``linear(Q(x), Q(w)) + bias``, at one width."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from comparison import one_hot, random_tensor, relative_error
from textbook import quantize_input, quantize_weight
from torch import nn

from dqnet.errors import UserError
from dqnet.layers import QuantConv2d, QuantLinear


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
    parameters = {key: t for key, t in copies.items() if "_quantizer." in key}
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


def test_several_widths_need_a_choice():
    with pytest.raises(UserError, match=r"widths \(2, 3\) needs a choice \[N, 2\]"):
        QuantLinear.from_float(double_linear(), (2, 3))(random_tensor(4, 7))
    with pytest.raises(UserError, match="a batch of images"):
        QuantLinear.from_float(double_linear(), (2, 3)).double()(random_tensor(7), one_hot([0], 2))


@pytest.mark.parametrize("name", ["dorefa", "pact", "lsq"])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(5, 7), (5, 4, 7), (5, 2, 3, 7)])
def test_routed_it_is_a_convolution_of_size_one(name, signed, bias, affine, shape):
    """Outputs and gradients of every parameter, against the same layer on ``[N, C, T, 1]``."""
    widths, choice = (1, 2, 4), one_hot([2, 0, 1, 1, 0], 3).requires_grad_()
    linear = double_linear(bias)
    conv = nn.Conv2d(7, 5, 1, bias=bias).double()
    conv.load_state_dict(
        {k: v.view(5, 7, 1, 1) if k == "weight" else v for k, v in linear.state_dict().items()}
    )
    layers = [
        kind.from_float(float_layer, widths, name, signed, width_affine=affine).double()
        for kind, float_layer in ((QuantLinear, linear), (QuantConv2d, conv))
    ]
    x = random_tensor(*shape, seed=5).requires_grad_()
    as_image = x.reshape(5, -1, 7).transpose(1, 2)[..., None]
    actual = layers[0](x, choice)
    expected = layers[1](as_image, choice)[..., 0].transpose(1, 2).reshape(actual.shape)
    assert relative_error(actual, expected) <= 1e-10
    with torch.no_grad():
        assert relative_error(layers[0].eval()(x, choice), expected) <= 1e-10
    upstream = random_tensor(*actual.shape, seed=6)
    gradients = torch.autograd.grad(actual, [x, choice, *layers[0].parameters()], upstream)
    others = torch.autograd.grad(expected, [x, choice, *layers[1].parameters()], upstream)
    for got, want in zip(gradients, others, strict=True):
        assert relative_error(got, want.reshape(got.shape)) <= 1e-10


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
