"""Layers with affine quantizers, against PyTorch's fake quantization and plain convolutions."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dqnet
from dqnet.layers import QuantConv2d, QuantLinear

WIDTHS = (2, 4, 8)


def of_range(low, high, bits):
    low, high = low.clamp_max(0), high.clamp_min(0)
    scale = (high - low) / (2**bits - 1)
    return scale, (-low / scale).round().int()


def oracle(layer, x, bits, per_channel=True):
    """What a static layer computes, of its own weight, and of x as the only batch it has seen."""
    weight, top = layer.weight, 2**bits - 1
    rows = weight.flatten(1) if per_channel else weight.reshape(1, -1)
    scale, zero = of_range(rows.amin(1).detach(), rows.amax(1).detach(), bits)
    if per_channel:
        w = torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, 0, top)
    else:
        w = torch.fake_quantize_per_tensor_affine(weight, scale.item(), zero.item(), 0, top)
    scale, zero = of_range(x.min().detach(), x.max().detach(), bits)
    q = torch.fake_quantize_per_tensor_affine(x, scale.item(), int(zero), 0, top)
    if isinstance(layer, nn.Linear):
        return F.linear(q, w, layer.bias)
    return F.conv2d(q, w, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


FLOATS = {
    "convolution": lambda: nn.Conv2d(4, 6, 3, padding=1, stride=2),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4, bias=False),
    "fully connected": lambda: nn.Linear(5, 3),
}


def made(kind, widths, **options):
    torch.manual_seed(0)
    layer = FLOATS[kind]()
    cls = QuantLinear if isinstance(layer, nn.Linear) else QuantConv2d
    return cls.from_float(layer, widths, "affine", options=(options, {}))


def batch(seed=0):
    return torch.randn(7, 4, 5, 5, generator=torch.Generator().manual_seed(seed)) + 0.4


@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
@pytest.mark.parametrize("k", range(3))
def test_every_width_is_the_static_layer_of_pytorchs_fake_quantization(kind, granularity, k):
    layer = made(kind, WIDTHS, granularity=granularity)
    x = batch().requires_grad_()
    choice = F.one_hot(torch.full((7,), k), 3).float()
    actual = layer(x, choice)
    upstream = torch.randn(actual.shape, generator=torch.Generator().manual_seed(1))
    expected = oracle(layer, x, WIDTHS[k], granularity == "per_channel")
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    mine = torch.autograd.grad(actual, [x, layer.weight], upstream)
    for ours, theirs in zip(
        mine, torch.autograd.grad(expected, [x, layer.weight], upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_images_of_a_routed_layer_run_at_their_own_widths():
    layer = made("convolution", WIDTHS)
    x = batch()
    layer(x, F.one_hot(torch.zeros(7, dtype=torch.long), 3).float())
    layer.eval()
    columns = torch.tensor([0, 1, 2, 2, 1, 0, 2])
    mixed = layer(x, F.one_hot(columns, 3).float())
    for image, k in enumerate(columns):
        torch.testing.assert_close(mixed[image], oracle(layer, x, WIDTHS[k])[image])


def test_a_weights_range_is_that_of_its_last_step():
    layer = made("convolution", (4,))
    layer(batch())
    with torch.no_grad():
        layer.weight.mul_(3)
    layer.eval()
    high = layer.weight.flatten(1).amax(1).clamp_min(0)
    torch.testing.assert_close(layer.weight_quantizer.high[0], high)
    with torch.no_grad():
        layer.weight.mul_(3)  # in evaluation it stays: rounded weights keep their grid
    layer.eval()
    torch.testing.assert_close(layer.weight_quantizer.high[0], high)
    layer.train().eval()  # nor does it follow where nothing was trained
    torch.testing.assert_close(layer.weight_quantizer.high[0], high)


def test_evaluation_leaves_ranges_alone():
    layer = made("convolution", (4,))
    layer(batch())
    state = copy.deepcopy(layer.state_dict())
    layer.eval()(10 * batch(1))
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())
    layer.train()(10 * batch(1))
    assert not torch.equal(layer.input_quantizer.high, state["input_quantizer.high"])


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())


def test_calibration_names_the_layer_whose_weight_is_not_finite():
    model = dqnet.quantize(net(), torch.zeros(1, 3, 9, 9), (8,), "affine", full_precision=[])
    with torch.no_grad():
        model.backbone[2].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(dqnet.UserError, match=r"layer '2' has NaN"):
        dqnet.calibrate(model, [torch.rand(2, 3, 9, 9)])


def test_calibration_refuses_images_of_one_colour():
    model = dqnet.quantize(net(), torch.zeros(1, 3, 9, 9), (8,), "affine", full_precision=[])
    with pytest.raises(dqnet.UserError, match="4 images of one colour each"):
        dqnet.calibrate(model, [torch.ones(2, 3, 9, 9), torch.zeros(2, 3, 9, 9)])
    assert dqnet.calibrate(model, [torch.ones(2, 3, 9, 9), torch.rand(2, 3, 9, 9)]) == 4
