"""AdaRound against every way of rounding, and its parts against plain convolutions and autograd."""

from __future__ import annotations

import itertools

import pytest
import torch
from small_networks import batches, calibrated
from timm.layers import Conv2dSame
from torch import nn

import dqnet
from dqnet.layers import QuantConv2d, QuantLinear
from dqnet.post_training import adaround
from dqnet.post_training.adaround import Moments, round_weight
from dqnet.post_training.patches import sampled_patches
from dqnet.quantizers.grid import affine_grid


def correlated(rows, size, seed=0):
    """Samples of inputs that depend on each other, as those of a convolution do."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=generator)
    return torch.randn(rows, size, generator=generator) @ mix + 1.0


@pytest.mark.parametrize("seed", range(5))
def test_rounding_is_at_least_half_as_much_better_than_nearest_as_the_best_of_all(seed):
    x = correlated(300, 8, seed)
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(seed))
    low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    grid = affine_grid(low.clamp_max(0), high.clamp_min(0), 3)

    def error(w):
        return ((x @ (w - weight).t()) ** 2).mean(0)

    down = (weight / grid.scale).floor()
    ends = grid.bottom - grid.zero_point, grid.top - grid.zero_point
    best = torch.full((3,), torch.inf)
    for up in itertools.product([0.0, 1.0], repeat=8):
        best = best.minimum(error((down + torch.tensor(up)).clamp(*ends) * grid.scale))
    nearest = error((weight / grid.scale).round().clamp(*ends) * grid.scale)
    moments = Moments.of(x[None], x[None])
    rounded = round_weight(weight, grid, moments, iterations=1500)
    codes = rounded / grid.scale
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-4)
    ups = codes.round() - down
    assert ((ups == 0) | (ups == 1) | (codes.round() == ends[1])).all()
    found = error(rounded)
    assert nearest.sum() - found.sum() >= (nearest.sum() - best.sum()) / 2


def test_the_gradient_is_that_of_the_mean_squared_error():
    exact, quantized = correlated(50, 6), correlated(50, 6) + 0.1
    weight = torch.randn(1, 4, 6)
    rounded = torch.randn(1, 4, 6, requires_grad=True)
    error = ((quantized @ rounded[0].t() - exact @ weight[0].t()) ** 2).mean(0).sum()
    (expected,) = torch.autograd.grad(error, rounded)
    moments = Moments.of(quantized[None], exact[None])
    actual = moments.gradient(rounded.detach(), moments.wanted(weight))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


CONVOLUTIONS = {
    "plain": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "grouped": lambda: nn.Conv2d(4, 6, (3, 1), padding=(2, 1), groups=2, dilation=(2, 1)),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4),
    "same": lambda: Conv2dSame(4, 6, 3, stride=2),
    "reflected": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_patches_times_the_weight_are_the_convolution(kind):
    conv = CONVOLUTIONS[kind]()
    layer = QuantConv2d.from_float(conv, (8,), "affine")
    x = torch.randn(11, 4, 7, 9)
    expected = conv(x) - conv.bias.view(-1, 1, 1)
    patches = sampled_patches(layer, x, count=10**6)
    weight = layer.weight.flatten(1).unflatten(0, (layer.groups, -1))
    products = torch.einsum("gpd,god->pgo", patches, weight).flatten(1)  # positions in any order
    for channel in range(layer.out_channels):
        torch.testing.assert_close(
            products[:, channel].sort().values,
            expected[:, channel].flatten().sort().values,
            rtol=1e-4, atol=1e-5,
        )  # fmt: skip


def test_patches_are_at_the_same_positions_in_every_call_and_about_as_many_as_wanted():
    layer = QuantConv2d.from_float(nn.Conv2d(2, 3, 3), (8,), "affine")
    x = torch.randn(20, 2, 12, 12)
    first = sampled_patches(layer, x, count=100)
    assert first.shape == (1, 100, 18)
    assert torch.equal(sampled_patches(layer, 2 * x, count=100), 2 * first)
    linear = QuantLinear.from_float(nn.Linear(5, 3), (8,), "affine")
    tokens = torch.randn(4, 7, 5)
    assert sampled_patches(linear, tokens, count=10).shape == (1, 10, 5)


def outputs(model, images):
    with torch.no_grad():
        return model.eval()(images).logits


def test_a_network_at_three_bits_comes_closer_to_its_float_form():
    images = torch.cat(batches(64, 64))
    exact = calibrated(widths=("w3a8",))
    with exact.unquantized(), torch.no_grad():
        wanted = exact.eval()(images).logits
    nearest = (outputs(calibrated(widths=("w3a8",)), images) - wanted).square().mean()
    model = calibrated(widths=("w3a8",))
    named = []
    adaround(model, images, iterations=300, done=named.append)
    assert named == [layer.name for layer in model.layers if layer.role == "static"]
    assert (outputs(model, images) - wanted).square().mean() < 0.5 * nearest
    model.train().eval()
    for name in named:  # rounding to nearest finds every weight where it is
        layer = model.backbone.get_submodule(name)
        torch.testing.assert_close(layer.quantized_weights()[0], layer.weight)


def test_known_weights_are_taken_as_they_are():
    images = torch.cat(batches(16))
    whole = adaround(calibrated(widths=("w3a8",)), images, iterations=30)
    some = dict(list(whole.items())[:3])
    model = calibrated(widths=("w3a8",))
    again = adaround(model, images, iterations=30, known=dict(some))
    assert all(torch.equal(again[name], weight) for name, weight in whole.items())


class Twice(nn.Module):
    """One layer runs twice."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return self.conv(self.conv(x)).mean((2, 3))


class Unused(nn.Module):
    """One layer runs for large images alone."""

    def __init__(self):
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        x = self.conv(x)
        return (self.other(x) if x.shape[-1] > 10 else x).mean((2, 3))


@pytest.mark.parametrize(
    ("net", "size", "options", "message"),
    [
        (Twice, 8, {}, "layer 'conv' runs more than once"),
        (Unused, 16, {}, "layer 'other' did not run on the calibration images"),
        (None, 8, {"widths": (2, 4)}, r"fit one precision; quant\.widths has several"),
        (None, 8, {"quantizer": "dorefa"}, "needs affine or symmetric weights; those of layer"),
    ],
)
def test_what_it_cannot_round_is_refused_in_one_line(net, size, options, message):
    images = torch.cat(batches(8))
    if net is None:
        model = calibrated(**options)
    else:
        model = dqnet.quantize(
            net(), torch.zeros(1, 3, size, size), (4,), "affine", full_precision=[]
        )
        dqnet.calibrate(model, [images])
    with pytest.raises(dqnet.UserError, match=message) as raised:
        adaround(model, images)
    assert "\n" not in str(raised.value)
