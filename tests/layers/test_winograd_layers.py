"""Quantized Winograd convolutions: integers to the last bit, gradients of the plain formula."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from comparison import float_conv, random_tensor
from torch import nn
from winograd_reference import reference_output

from dqnet.errors import UserError
from dqnet.layers import QuantConv2d, Winograd
from dqnet.layers.winograd import Transforms
from dqnet.quantizers.trained_threshold import trained_threshold

METHODS = ["affine", "symmetric", "lsq", "fixed_point"]
HOW = {
    "F4, taps": Winograd(),
    "F4, 10 bits": Winograd(bits=10),
    "F4, one scale": Winograd(scales="layer"),
    "F2, taps": Winograd(tile=2),
    "F2, 3 bits": Winograd(tile=2, bits=3),
}


def layer_of(method="affine", how=None, widths=(8,), channels=5, signed=True, **options):
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, 6, 3, padding=1, **options)
    layer = QuantConv2d.from_float(conv, widths, method, signed)
    layer.use_winograd(how or Winograd())
    return layer


def images(*shape, seed=0):
    return random_tensor(*shape, seed=seed).float()


@pytest.mark.parametrize("name", HOW)
@pytest.mark.parametrize("method", METHODS)
def test_evaluation_is_integer_arithmetic_to_the_last_bit(method, name):
    layer = layer_of(method, HOW[name])
    layer(images(4, 5, 9, 7))
    layer.eval()
    x = images(3, 5, 9, 7, seed=1) * 1.5  # beyond what the quantizers have seen
    expected, sums = reference_output(layer, x)
    with torch.no_grad():
        assert np.array_equal(layer(x).numpy(), expected)
    assert np.unique(sums).size > 40


@pytest.mark.parametrize("widths", [("w2a3",), ("w4a8",), ("w16a16",)])
@pytest.mark.parametrize("channels", [3, 70])
def test_so_it_is_at_other_bits_and_with_many_channels(widths, channels):
    layer = layer_of("affine", Winograd(bits=10), widths, channels, bias=False)
    layer(images(2, channels, 6, 6))
    layer.eval()
    x = images(2, channels, 6, 6, seed=1)
    with torch.no_grad():
        assert np.array_equal(layer(x).numpy(), reference_output(layer, x)[0])


@pytest.mark.parametrize("tile", [2, 4])
def test_with_many_bits_it_is_the_direct_quantized_convolution(tile):
    layer = layer_of("affine", Winograd(tile, bits=16))
    direct = copy.deepcopy(layer)
    direct.winograd = None
    x = images(3, 5, 8, 8)
    y, expected = layer(x), direct(x)
    assert (y - expected).norm() < 1e-3 * expected.norm()


def test_one_scale_for_all_taps_loses_what_a_scale_for_each_keeps():
    """The paper's point: the error of F(4x4, 3x3) at 8 bits, in energy."""
    x, error = images(8, 5, 16, 16), {}
    for scales in ("tap", "layer"):
        layer = layer_of("affine", Winograd(scales=scales))
        direct = layer.geometry.forward(x, layer.weight, layer.bias)
        error[scales] = (layer(x) - direct).square().mean() / direct.square().mean()
    assert error["tap"] < 0.1 * error["layer"]


# Gradients


def straight(x, y):
    return y.detach() + (x - x.detach())


@pytest.mark.parametrize("name", HOW)
@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_the_plain_formula(method, name):
    layer = layer_of(method, HOW[name]).double()
    how, domain, transforms = layer.winograd.how, layer.winograd, layer.winograd.transforms
    x = random_tensor(3, 5, 7, 6).requires_grad_()
    layer(x.detach())
    with torch.no_grad():  # so that some transformed numbers are clipped
        domain.weight_quantizer.log2_threshold -= 0.8
        domain.input_quantizer.log2_threshold -= 1.3
    leaves = [x, *(p for p in layer.parameters() if p.requires_grad)]

    actual = layer(x)
    step = layer.input_quantizer.encode(x, 0).scale
    weight_step = layer.weight_quantizer.encode(layer.weight, 0).scale
    padded = nn.functional.pad(layer.input_quantizer(x, 0), (1, 1, 1, 1)) / step
    inputs = transforms.input(straight(padded, padded.round()))
    ratio = layer.weight_quantizer(layer.weight, 0) / weight_step
    weights = transforms.weight(straight(ratio, ratio.round()))
    thresholds = (
        quantizer.log2_threshold.view(-1, 1, 1)
        for quantizer in (domain.input_quantizer, domain.weight_quantizer)
    )
    products = torch.einsum(
        "tpc,tco->tpo",
        *(
            trained_threshold(t, own, how.bits)
            for t, own in zip((inputs, weights), thresholds, strict=True)
        ),
    )
    expected = transforms.output(products, 3, 7, 6)
    expected = expected * step * weight_step.reshape(-1, 1, 1) + layer.bias.view(-1, 1, 1)

    torch.testing.assert_close(actual, expected)
    upstream = random_tensor(*actual.shape, seed=5)
    got = torch.autograd.grad(actual, leaves, upstream)
    torch.testing.assert_close(got, torch.autograd.grad(expected, leaves, upstream))
    assert all(grad.any() for grad in got)


def test_scales_that_are_not_learned_have_no_gradient():
    layer = layer_of("affine", Winograd(learned=False))
    layer(images(2, 5, 8, 8)).sum().backward()
    assert all(p.grad is None for p in layer.winograd.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_with_autocast_the_output_has_its_type_and_codes_stay_whole(training):
    layer = layer_of("affine").train(training)
    x = images(2, 5, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=2**-8, atol=1e-6)


# Calibration


def test_calibrated_scales_cover_the_largest_transformed_number_of_each_tap():
    layer = layer_of("affine")
    batches = [images(3, 5, 8, 8, seed=i) * (1 + i) for i in range(3)]
    layer.calibrating = True
    layer.weight_quantizer.observe(layer.weight.detach())
    for batch in batches:
        layer(batch)
    layer.complete()
    x = nn.functional.pad(torch.cat(batches), (1, 1, 1, 1))
    largest = Transforms(4).input(x).abs().amax((1, 2))
    step = layer.input_quantizer.encode(x, 0).scale
    found = layer.winograd.input_quantizer.log2_threshold.exp2() * step
    torch.testing.assert_close(found.detach(), largest)
    assert layer.winograd.ready


def test_a_copy_made_before_the_first_batch_starts_from_the_same_scales():
    layer = layer_of("lsq")
    average = copy.deepcopy(layer)
    layer(images(2, 5, 8, 8))
    for own, other in zip(layer.winograd.parameters(), average.winograd.parameters(), strict=True):
        assert torch.equal(own, other)


def test_a_batch_of_nothing_but_nan_sets_nothing():
    layer = layer_of("lsq")
    layer(torch.full((1, 5, 6, 6), float("nan")))
    assert not layer.winograd.ready


# What it is for


@pytest.mark.parametrize("margins", ["same", "reflect", "none"])
def test_margins_are_those_of_the_direct_convolution(margins):
    options = {"reflect": {"padding": 1, "padding_mode": "reflect"}, "none": {}}.get(margins)
    conv = float_conv(4, 3, 3, **({"same": True} if options is None else options))
    layer = QuantConv2d.from_float(conv, ("w8a8",), "affine", signed=True).double()
    direct = copy.deepcopy(layer)
    layer.use_winograd(Winograd(bits=16))
    x = random_tensor(2, 4, 7, 5)
    y, expected = layer(x), direct(x)
    assert y.shape == expected.shape and (y - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize(
    ("options", "widths", "method", "message"),
    [
        ({"stride": 2}, (8,), "affine", "3 x 3, stride 1, of one group: not stride 2"),
        ({"groups": 4}, (8,), "affine", "not 4 groups"),
        ({}, (4, 8), "affine", "has one precision, not several"),
        ({}, (8,), "dorefa", "affine, symmetric, lsq or fixed_point, not DoReFaWeight at 8"),
        ({}, ("e4m3",), "minifloat", "not MinifloatWeight at e4m3"),
        ({}, (8,), "lsq_plus", "not LSQPlus at 8"),
        ({}, (1,), "lsq", "of 2 bits and more: .*not LSQWeight at 1"),
    ],
)
def test_what_has_no_such_form_is_refused_and_stays_as_it_was(options, widths, method, message):
    layer = QuantConv2d.from_float(nn.Conv2d(4, 8, 3, **options), widths, method)
    with pytest.raises(UserError, match=message):
        layer.use_winograd(Winograd())
    assert layer.winograd is None
