"""Quantized neural networks against their formulas, written out in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from formats import ALL_WIDTHS, spread_values
from torch import nn

import dqnet
from dqnet.errors import UserError
from dqnet.formats import Format
from dqnet.layers import QuantConv2d, QuantLinear
from dqnet.quantizers import build_quantizers
from dqnet.quantizers.qnn import QNNInput, QNNWeight, qnn


def formula(x, bits):
    if bits == 1:
        return np.where(x >= 0, 1.0, -1.0)
    m = 2.0 ** (bits - 1)
    return np.clip(np.round(m * x) / m, -1, 1 - 1 / m)


@pytest.mark.parametrize("bits", ALL_WIDTHS)
def test_values_are_the_written_formula(bits):
    x = spread_values(1.0)
    assert np.array_equal(qnn(x, bits), formula(x.numpy(), bits))


def test_one_bit_is_the_sign_and_that_of_zero_is_positive():
    x = torch.tensor([-7.0, -1e-30, -0.0, 0.0, 1e-30, float("nan"), float("inf")])
    expected = torch.tensor([-1.0, -1, 1, 1, 1, float("nan"), 1])
    assert torch.equal(qnn(x, 1).nan_to_num(9), expected.nan_to_num(9))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_without_a_sign_there_are_as_many_values_from_zero_up(bits):
    x = torch.linspace(-2, 2, 4001).double()
    assert np.array_equal(np.unique(qnn(x, bits, False)), np.arange(0, 1, 2.0**-bits))


@pytest.mark.parametrize("bits", [1, 2, 8])
@pytest.mark.parametrize(
    ("signed", "passed"),
    # -1.01 -1 -0.5 0 0.5 1 1.01
    [(True, [0, 1, 1, 1, 1, 1, 0]), (False, [0, 0, 0, 1, 1, 1, 0])],
)
def test_the_gradient_is_that_of_hard_tanh(bits, signed, passed):
    x = torch.tensor([-1.01, -1.0, -0.5, 0.0, 0.5, 1.0, 1.01]).requires_grad_()
    qnn(x, bits, signed).backward(torch.full((7,), 3.0))
    assert (x.grad / 3).tolist() == passed


@pytest.mark.parametrize("bits", [1, 2, 5])
@pytest.mark.parametrize("signed", [True, False])
def test_the_fast_path_is_the_plain_one(bits, signed):
    x = spread_values(1.0).view(1, -1)
    quantizer = QNNInput([Format(bits)], signed=signed)
    wanted = x.clone().requires_grad_()
    expected = quantizer(wanted, 0)
    written = x.clone()
    scale = quantizer.codes_into(written, 0, written)
    assert torch.equal(written * scale, expected)
    grad = spread_values(1.0, seed=1).view(1, -1)
    expected.backward(grad)
    out = torch.empty_like(x)
    assert quantizer.input_gradients(grad.clone(), x, 0, out) == []
    assert torch.equal(out, wanted.grad)


def test_nothing_is_learned_or_taken_from_data():
    formats = [Format(1), Format(2)]
    weight, x = build_quantizers("qnn", formats, formats, signed=True, channels=3)
    assert type(weight) is QNNWeight and type(x) is QNNInput
    for quantizer in (weight, x):
        assert not list(quantizer.parameters()) and not quantizer.needs_data


def trained(layer, x, steps):
    """Steps of SGD that push weights outwards; what was stored before and after each."""
    optimizer = torch.optim.SGD([layer.weight], 40.0)
    stored = []
    for _ in range(steps):
        before = layer.weight.detach().clone()
        y = layer(x)
        stored.append((before, layer.weight.detach().clone()))
        optimizer.zero_grad()
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).mean().backward()
        optimizer.step()
    return stored


@pytest.mark.parametrize("bits", [1, 2])
@pytest.mark.parametrize("kind", ["convolution", "fully connected"])
def test_stored_weights_are_clipped_after_each_step(bits, kind):
    """Algorithm 1 of the paper, the same as if clipped right after the update."""
    torch.manual_seed(0)
    if kind == "convolution":
        layer, x = QuantConv2d(2, 3, 3, widths=(bits,), quantizer="qnn"), torch.rand(4, 2, 5, 5)
    else:
        layer, x = QuantLinear(6, 3, widths=(bits,), quantizer="qnn"), torch.rand(4, 6)
    for before, after in trained(layer, x, 4):
        assert torch.equal(after, before.clamp(-1, 1))
    assert layer.weight.abs().max() > 1  # by the last step
    clipped = layer.weight.detach().clamp(-1, 1)
    layer.eval()
    assert torch.equal(layer.weight, clipped)
    with torch.no_grad():
        layer.weight[:] = 5
    layer(x)
    assert (layer.weight == 5).all()  # evaluation changes nothing


def test_weights_that_are_clipped_leave_an_outstanding_backward_pass_alone():
    torch.manual_seed(0)
    layer = QuantConv2d(2, 3, 3, widths=(1, 2), quantizer="qnn")
    x, choice = torch.rand(4, 2, 5, 5), F.one_hot(torch.tensor([0, 1, 1, 0]), 2).float()
    y = layer(x, choice)
    with torch.no_grad():
        layer.weight *= 10
    (layer(x, choice).sum() + y.sum()).backward()
    assert layer.weight.grad.isfinite().all()


@pytest.mark.parametrize("pair", ["1", "w1a2", "2", "4"])
def test_a_static_layer_is_the_convolution_of_the_formulas(pair):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, padding=1).double()
    layer = QuantConv2d.from_float(conv, (pair,), "qnn", signed=True).double()
    x = spread_values(1.0, 6 * 3 * 8 * 8).view(6, 3, 8, 8)
    bits = {"1": (1, 1), "w1a2": (1, 2), "2": (2, 2), "4": (4, 4)}[pair]
    weight, inputs = (
        torch.from_numpy(formula(t.detach().numpy(), b))
        for t, b in zip((conv.weight, x), bits, strict=True)
    )
    expected = F.conv2d(inputs, weight, conv.bias, padding=1)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_norms_cannot_be_folded_into_weights_that_are_clipped():
    net = timm.create_model("resnet20_cifar")
    with pytest.raises(UserError, match="QNNWeight brings every weight to a scale of its own"):
        dqnet.quantize(net, torch.zeros(1, 3, 8, 8), (2,), "qnn", fold_batch_norm="corrected")
