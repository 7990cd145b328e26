"""Layers with NaN, infinity, huge and subnormal values, sizes of one, and half precision.

A NaN stays with its image and is never a number again; everything else is the textbook's answer.
"""

from __future__ import annotations

import copy
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from comparison import (
    assert_equal_to_textbook,
    float_conv,
    one_hot,
    quantized,
    random_tensor,
    relative_error,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dqnet
from dqnet.layers import QuantConv2d, QuantLinear

QUANTIZERS = ["dorefa", "pact", "lsq"]
WIDTHS = (1, 2, 4)
HALF = [torch.float16, torch.bfloat16]
#: not the ends of a clip, where either slope is right
UNUSUAL = [math.inf, -math.inf, 1e30, -1e30, 5e-324, -5e-324, 1e-310, -1e-310]
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "strided": lambda x: x.repeat_interleave(2, dim=3)[..., ::2],
}


@st.composite
def cases(draw) -> dict:
    """A convolution, and a batch of a few images with a few unusual values in it."""
    size = st.integers(1, 4)
    channels, outputs = draw(st.integers(1, 3)), draw(st.integers(2, 3))
    images, height, width = draw(st.integers(0, 4)), draw(size), draw(size)
    seed = draw(st.integers(0, 10**6))
    x = random_tensor(images, channels, height, width, seed=seed)
    if x.numel():
        where = st.integers(0, x.numel() - 1)
        for i, value in draw(st.dictionaries(where, st.sampled_from(UNUSUAL), max_size=4)).items():
            x.view(-1)[i] = value
    columns = draw(st.lists(st.integers(0, 2), min_size=images, max_size=images))
    return {
        "conv": float_conv(channels, outputs, draw(st.sampled_from([1, 3])), padding=1, seed=seed),
        "x": draw(st.sampled_from(list(LAYOUTS.values())))(x),
        "columns": columns,
        "name": draw(st.sampled_from(QUANTIZERS)),
        "signed": draw(st.booleans()),
    }


@settings(max_examples=120, deadline=None)
@given(case=cases())
def test_unusual_numbers_and_sizes_give_the_textbooks_answer(case):
    conv, x, name = case["conv"], case["x"], case["name"]
    layer = quantized(conv, WIDTHS, name, case["signed"])
    choice = one_hot(case["columns"], 3).requires_grad_()
    assert_equal_to_textbook(layer, conv, name, x.clone().requires_grad_(), choice)


@settings(max_examples=80, deadline=None)
@given(case=cases(), affine=st.booleans(), data=st.data())
def test_nan_reaches_what_it_is_part_of_and_no_other_image(case, affine, data):
    conv, x, name = case["conv"], case["x"].contiguous(), case["name"]
    layer = quantized(conv, WIDTHS, name, case["signed"])
    if affine:
        other = QuantConv2d.from_float(conv, WIDTHS, name, case["signed"], width_affine=True)
        layer.affine = other.affine.double()
    broken = x.clone()
    if x.numel():
        for i in data.draw(st.sets(st.integers(0, x.numel() - 1), max_size=3)):
            broken.view(-1)[i] = math.nan
    ones = torch.ones_like(conv.weight)
    reached = F.conv2d(broken.isnan().double(), ones, padding=conv.padding) > 0
    clean = ~reached.flatten(1).any(1) if len(x) else torch.ones(0, dtype=torch.bool)

    def pass_through(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = x.clone().requires_grad_()
        choice = one_hot(case["columns"], 3).requires_grad_()
        y = layer(x, choice)
        return y, *torch.autograd.grad(y, (x, choice), random_tensor(*y.shape, seed=3))

    y, grad_x, grad_choice = pass_through(broken)
    expected_y, expected_grad_x, expected_grad_choice = pass_through(x)
    assert torch.equal(y.isnan(), reached)
    assert relative_error(y[~reached], expected_y[~reached]) <= 1e-10
    assert relative_error(grad_x[clean], expected_grad_x[clean]) <= 1e-10
    assert relative_error(grad_choice[clean], expected_grad_choice[clean]) <= 1e-10
    assert grad_choice[~clean].isnan().all()


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_nan_reaches_its_own_row_of_a_fully_connected_layer(name, signed, width):
    layer = QuantLinear(7, 5, widths=(width,), quantizer=name, signed=signed)
    x = random_tensor(3, 7).float()
    layer(x)  # LSQ's first batch
    expected = layer(x)
    x[1, 4] = math.nan
    y = layer(x)
    assert y[1].isnan().all()
    assert torch.equal(y[[0, 2]], expected[[0, 2]])


def test_nan_in_the_first_batch_does_not_spoil_the_other_images():
    conv = float_conv(2, 3, 3, padding=1)
    x, choice = random_tensor(4, 2, 5, 5, seed=5), one_hot([0, 1, 2, 1], 3)
    x[2, 1, 3, 3] = math.nan
    layer = QuantConv2d.from_float(conv, WIDTHS, "lsq").double()
    y = layer(x, choice)
    others = [0, 1, 3]
    assert y[2].isnan().any()
    assert y[others].isfinite().all()
    assert layer.input_quantizer.step.isfinite().all()


def test_nan_in_a_network_stays_with_its_image():
    torch.manual_seed(0)
    network = timm.create_model("resnet20_cifar")
    model = dqnet.quantize(network, torch.zeros(1, 3, 8, 8), quantizer="lsq").eval()
    images = torch.randn(4, 3, 8, 8)
    expected = model(images)
    images[2, 0, 4, 4] = math.nan
    actual = model(images)
    others = [0, 1, 3]
    assert actual.logits[2].isnan().all()
    torch.testing.assert_close(actual.logits[others], expected.logits[others])
    assert torch.equal(actual.routing[others], expected.routing[others])


def test_nan_in_one_weight_is_in_the_gain_of_every_width():
    """Norms are of whole weights: a NaN among them is not taken for an empty weight."""
    layer = QuantConv2d(2, 3, 3, widths=(2, 4), quantizer="lsq", width_affine=True)
    with torch.no_grad():
        layer.weight[0, 0, 0, 0] = math.nan
    assert layer(torch.rand(2, 2, 5, 5), torch.eye(2)).isnan().all()


# Half precision


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("width", [4, 16])
def test_a_half_precision_layer_is_close_to_float32_on_the_same_numbers(dtype, name, affine, width):
    conv = float_conv(8, 6, 3, padding=1).float()
    layer = quantized(conv, (2, width), name).float()
    if affine:
        layer.affine = QuantConv2d.from_float(conv, (2, width), width_affine=True).affine
    layer = layer.to(dtype)
    wide = copy.deepcopy(layer).float()
    x = random_tensor(4, 8, 6, 6, seed=5).to(dtype).requires_grad_()
    choice = one_hot([0, 1, 1, 0], 2).to(dtype).requires_grad_()
    wide_x, wide_choice = (t.detach().float().requires_grad_() for t in (x, choice))
    y, expected = layer(x, choice), wide(wide_x, wide_choice)
    assert y.dtype == dtype
    tolerance = 0.03 if dtype == torch.bfloat16 else 0.005
    assert relative_error(y, expected) < tolerance
    upstream = random_tensor(*y.shape, seed=6).to(dtype)
    leaves, wide_leaves = [x, choice, layer.weight], [wide_x, wide_choice, wide.weight]
    got = torch.autograd.grad(y, leaves, upstream)
    want = torch.autograd.grad(expected, wide_leaves, upstream.float())
    for a, b in zip(got, want, strict=True):
        assert relative_error(a, b) < 2 * tolerance


@pytest.mark.parametrize("dtype", [torch.float64, *HALF])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_network_may_be_converted_in_any_precision(dtype, name):
    def converted(before, after):
        torch.manual_seed(0)
        network = timm.create_model("resnet20_cifar").to(before)
        return dqnet.quantize(network, torch.zeros(1, 3, 8, 8, dtype=before), quantizer=name).to(
            after
        )

    x = random_tensor(3, 3, 8, 8).to(dtype)
    model, expected = converted(dtype, dtype), converted(torch.float32, dtype)
    routing = F.one_hot(torch.tensor([[0], [1], [2]]).expand(3, len(model.routed_layers)), 3)
    logits = model(x, routing.to(dtype)).logits
    assert torch.equal(logits, expected(x, routing.to(dtype)).logits)
    logits.sum().backward()
    assert all(p.grad.dtype == dtype for p in model.backbone.parameters())


@pytest.mark.parametrize("kind", [QuantConv2d, QuantLinear])
def test_device_and_type_of_a_layer_are_those_of_all_its_parameters(kind):
    size = (2, 3, 1) if kind is QuantConv2d else (2, 3)
    more = {"widths": (2, 4), "width_affine": True} if kind is QuantConv2d else {"widths": (2,)}
    for key, value in (("dtype", torch.float64), ("device", torch.device("meta"))):
        layer = kind(*size, quantizer="lsq", **more, **{key: value})
        assert {getattr(p, key) for p in layer.parameters()} == {value}


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", ["dorefa", "pact"])
def test_autocast_clips_what_half_precision_cannot_hold(dtype, name):
    """100,000 is infinity in float16, and one of the largest values of these formats in both."""
    layer = quantized(float_conv(2, 3, 1).float(), (2, 4), name, signed=True).float()
    x, choice = torch.rand(2, 2, 3, 3), torch.eye(2)
    x[0, 0, 0, 0], x[1, 1, 2, 2] = 1e5, -1e38
    with torch.autocast("cpu", dtype):
        y = layer(x, choice)
    assert y.dtype == dtype
    held = x.to(dtype).float()  # what autocast hands to the layer
    assert relative_error(y, layer(held, choice)) < 0.02


@pytest.mark.parametrize("dtype", HALF)
def test_autocast_keeps_nan_with_its_image(dtype):
    layer = quantized(float_conv(2, 3, 1).float(), WIDTHS, "lsq", signed=True).float()
    x, choice = torch.rand(3, 2, 3, 3), torch.eye(3)
    x[0, :, 1, 1] = math.nan
    with torch.autocast("cpu", dtype):
        y = layer(x, choice)
    assert y[0, :, 1, 1].isnan().all()
    assert y.isnan().sum() == y.shape[1]


def test_an_output_beyond_float16_is_infinite_and_not_some_number():
    layer = quantized(float_conv(1, 2, 1, bias=False), (4,), "lsq").float()
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.weight_quantizer.step.fill_(1.0)
        layer.input_quantizer.step.fill_(6e3)
    x = torch.tensor([1e3, 3e4, 9e4]).view(3, 1, 1, 1)
    assert layer(x)[:, 0].flatten().tolist() == [0.0, 3e4, 9e4]
    y = layer.half()(x.half())
    assert y[:, 0].flatten().tolist() == [0.0, 3e4, math.inf]


# What is no image


@pytest.mark.parametrize("x", [torch.ones(2, 2, 3, 3).long(), torch.ones(2, 2, 3, 3).bool()])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_integers_are_refused(name, x):
    layer = QuantConv2d(2, 3, 1, widths=(2, 3), quantizer=name)
    with pytest.raises(dqnet.UserError, match="takes floating-point images, not torch"):
        layer(x, torch.eye(2))
