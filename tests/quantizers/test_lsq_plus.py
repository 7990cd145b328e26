"""LSQ+ against the formulas of https://arxiv.org/abs/2004.09576, written out in NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from formats import ALL_WIDTHS, assert_levels, nearest, spread_values
from scipy.optimize import minimize

from dqnet.errors import UserError
from dqnet.formats import Format
from dqnet.layers import QuantConv2d
from dqnet.quantizers import find_quantizers
from dqnet.quantizers.lsq import LSQWeight
from dqnet.quantizers.lsq_plus import LSQPlus, lsq_plus

STEP, OFFSET = 0.37, -0.81


def scalar(value):
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def levels(width):
    return OFFSET + STEP * np.arange(2**width)


def swish(count=4000, spread=2.0):
    return F.silu(spread * torch.randn(count, generator=torch.Generator().manual_seed(0)).double())


def quantized(x, step, offset, width):
    codes = np.round(np.clip((x - offset) / step, 0, 2**width - 1))
    return codes * step + offset


def prepared(widths, *batches):
    quantizer = LSQPlus([Format(width) for width in widths]).double()
    for batch in batches:
        quantizer.observe(batch)
    quantizer.complete()
    return quantizer


def test_weights_are_lsqs():
    assert find_quantizers("lsq_plus") == (LSQWeight, LSQPlus)


@pytest.mark.parametrize("width", ALL_WIDTHS)
def test_values_are_the_nearest_of_levels_that_begin_at_the_offset(width):
    x = spread_values(STEP * 2**width)
    actual = lsq_plus(x, scalar(STEP), scalar(OFFSET), width)
    assert_levels(actual, nearest(x.numpy(), levels(width)))
    assert_levels(lsq_plus(actual, scalar(STEP), scalar(OFFSET), width), actual.detach().numpy())


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_gradients_are_the_papers_element_by_element(width, scale):
    top = 2**width - 1
    ratios = np.array([-2.0, -1e-9, 0.0, 0.2, 0.7, top - 0.4, top, top + 1e-9, top + 3.0])
    inside = (ratios > 0) & (ratios < top)
    to_step = np.where(inside, np.round(ratios) - ratios, np.clip(ratios, 0, top))
    for ratio, passed, slope in zip(ratios, inside, to_step, strict=True):
        # An offset of zero and a step of one: the ratio is the input, without rounding errors.
        x, step, offset = torch.tensor([ratio]).double().requires_grad_(), scalar(1.0), scalar(0.0)
        lsq_plus(x, step, offset, width, scale).backward(torch.tensor([5.0]).double())
        assert x.grad.item() == 5 * passed
        assert step.grad.item() == pytest.approx(5 * slope * scale, abs=1e-12)
        assert offset.grad.item() == 5 * (not passed) * scale


def test_a_step_and_an_offset_that_are_trained_fit_a_tensor_better():
    x = swish()
    step, offset = scalar(1.3), scalar(0.4)
    optimizer = torch.optim.SGD([step, offset], 0.05)
    errors = []
    for _ in range(200):
        errors.append((lsq_plus(x, step, offset, 3) - x).square().mean())
        optimizer.zero_grad()
        errors[-1].backward()
        optimizer.step()
    assert errors[-1] < 0.3 * errors[0]
    assert offset < 0


@pytest.mark.parametrize("width", [1, 2, 3, 4, 8])
def test_the_initial_error_is_that_of_a_numeric_minimum(width):
    """The whole range where bits suffice, a narrower one where they do not."""
    x = swish().numpy()
    quantizer = prepared([width], torch.from_numpy(x).view(40, 100))
    step, offset = quantizer.step.item(), quantizer.offset.item()

    def error(parameters):
        step, offset = parameters
        return np.mean((quantized(x, max(step, 1e-6), offset, width) - x) ** 2)

    whole = (x.max() - x.min()) / (2**width - 1), x.min()
    starts = [whole, (step, offset), *((share * whole[0], x.min()) for share in (0.3, 0.5, 0.7))]
    least = min(minimize(error, start, method="Nelder-Mead").fun for start in starts)
    assert error((step, offset)) <= 1.15 * least
    assert error((step, offset)) <= error(whole) * (1 + 1e-9)


def test_several_batches_count_like_one_and_every_format_has_values_of_its_own():
    x = swish().view(40, 100)
    parts = prepared([2, 8], x[:7], x[7:30], x[30:])
    whole = prepared([2, 8], x)
    torch.testing.assert_close(parts.step, whole.step)
    torch.testing.assert_close(parts.offset, whole.offset)
    assert parts.step[0] > parts.step[1]


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
def test_a_constant_batch_is_represented_exactly(value):
    x = torch.full((4, 5), value).double()
    quantizer = prepared([1, 4], x)
    for k in range(2):
        assert torch.equal(quantizer(x, k), x)
    assert quantizer.step.tolist() == [1, 1]


def test_values_that_are_not_finite_are_left_out_of_the_range():
    x = swish(400).view(4, 100)
    spoilt = torch.cat([x, torch.tensor([math.nan, math.inf, -math.inf]).double().repeat(4, 1)], 1)
    clean, other = prepared([4], x), prepared([4], spoilt)
    assert torch.equal(clean.step, other.step) and torch.equal(clean.offset, other.offset)
    out = other(spoilt, 0)[0, -3:]
    assert out[0].isnan() and out[1] > 0 and out[2] == other.offset[0]


@pytest.mark.parametrize("width", [1, 4, 16])
def test_codes_have_a_zero_point_and_the_fast_path_is_the_plain_one(width):
    x = swish().view(40, 100)
    quantizer = prepared([width], x)
    codes, expected = quantizer.encode(x, 0), quantizer(x, 0).detach()
    assert set(codes.codes.unique().tolist()) <= set(range(2**width))
    torch.testing.assert_close(codes.values(), expected, rtol=1e-12, atol=1e-12)
    zero_point = -quantizer.offset[0] / quantizer.step[0]
    torch.testing.assert_close(codes.zero_point, zero_point.detach())
    written = x.clone()
    scale = quantizer.codes_into(written, 0, written)
    assert torch.equal(written * scale, expected)


def padded_conv(widths):
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, 4, 3, padding=2, stride=2).double()
    layer = QuantConv2d.from_float(conv, widths, "lsq_plus", signed=True).double()
    x = swish(20 * 3 * 9 * 9).view(20, 3, 9, 9)
    assert x.numel() > layer.weight.numel() * len(widths)  # so that codes are convolved
    return layer, x


@pytest.mark.parametrize("widths", [(3,), (2, 3)])
def test_padding_of_a_convolution_is_zero_and_not_a_code(widths):
    """Zero lies between two levels; what is padded must be zero all the same."""
    layer, x = padded_conv(widths)
    k = len(widths) - 1
    choice = F.one_hot(torch.full((len(x),), k), len(widths)).double()
    x.requires_grad_()
    actual = layer(x, choice)
    own = layer.input_quantizer
    assert own(torch.zeros(1, 1).double(), k) != 0
    weight = layer.weight_quantizer(layer.weight, k)
    expected = F.conv2d(F.pad(own(x, k), (2, 2, 2, 2)), weight, layer.bias, stride=2)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    # The corner sees padding alone but for one pixel.
    alone = (own(x, k)[:, :, 0, 0, None] * weight[:, :, 2, 2].t()).sum(1) + layer.bias
    torch.testing.assert_close(actual[:, :, 0, 0], alone, rtol=1e-10, atol=1e-10)
    leaves = [x, layer.weight, own.step, own.offset]
    upstream = torch.randn_like(expected)
    gradients = torch.autograd.grad(actual, leaves, upstream)
    for got, want in zip(gradients, torch.autograd.grad(expected, leaves, upstream), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


def test_integer_arithmetic_needs_the_padding_to_be_the_zero_point():
    """conv(code − z) with zeros, not conv(code): what an integer kernel has to reproduce."""
    layer, x = padded_conv((3,))
    y = layer(x)
    codes = layer.input_quantizer.encode(x, 0)
    centered = F.pad(codes.codes - codes.zero_point, (2, 2, 2, 2))
    weight = layer.weight_quantizer.encode(layer.weight, 0)
    products = F.conv2d(centered, weight.codes.double(), stride=2)
    expected = products * codes.scale * weight.scale + layer.bias.view(-1, 1, 1)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)


def test_steps_driven_below_zero_give_finite_values():
    x = spread_values(1.0, 100)
    step, offset = scalar(-2.0), scalar(OFFSET)
    out = lsq_plus(x, step, offset, 3)
    out.sum().backward()
    assert out.isfinite().all() and step.grad.isfinite() and offset.grad.isfinite()


def test_options_are_refused():
    with pytest.raises((TypeError, UserError)):
        LSQPlus([Format(2)], observer="mse")
