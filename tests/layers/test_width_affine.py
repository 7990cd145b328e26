"""A scale and an offset per width and channel, against the textbook form and written-out norms."""

from __future__ import annotations

import pytest
import torch
from comparison import (
    convolve_like,
    float_conv,
    one_hot,
    quantized,
    random_tensor,
    relative_error,
)
from textbook import quantize_input, quantize_weight
from torch import Tensor, nn

from dqnet.layers import QuantConv2d
from dqnet.layers.groups import Groups
from dqnet.layers.routed_conv import routed_conv2d
from dqnet.layers.width_affine import LARGEST_GAIN, WidthAffine

WIDTHS = (1, 2, 4)


def layer_with_affine(conv: nn.Conv2d, widths: tuple[int, ...] = WIDTHS) -> QuantConv2d:
    layer = QuantConv2d.from_float(conv, widths, width_affine=True).double()
    if layer.affine is not None:
        with torch.no_grad():
            layer.affine.gain.copy_(1 + 0.3 * random_tensor(*layer.affine.gain.shape, seed=5))
            layer.affine.shift.copy_(random_tensor(*layer.affine.shift.shape, seed=6))
            layer.affine.initialized.fill_(True)
    return layer


def textbook(conv: nn.Conv2d, leaves: dict[str, Tensor], widths: tuple[int, ...]) -> Tensor:
    bias = leaves["bias"].view(-1, 1, 1) if "bias" in leaves else 0
    y = 0
    for k in range(len(widths)):
        q = quantize_input(leaves["x"], "dorefa", widths, k, False, {})
        weight = quantize_weight(leaves["weight"], "dorefa", widths, k, {})
        part = leaves["gain"][k].view(-1, 1, 1) * convolve_like(conv)(q, weight)
        y = y + leaves["choice"][:, k].view(-1, 1, 1, 1) * (
            part + leaves["shift"][k].view(-1, 1, 1) + bias
        )
    return y


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chosen", [[0, 1, 2, 0, 2, 1], [1] * 6, [2, 2, 0, 0, 2, 2]])
def test_output_and_every_gradient_equal_the_textbook(bias: bool, chosen: list[int]) -> None:
    conv = float_conv(3, 4, 3, padding=1, stride=2, bias=bias)
    layer = layer_with_affine(conv)
    x = random_tensor(6, 3, 7, 5, seed=1).requires_grad_()
    choice = one_hot(chosen, 3).requires_grad_()
    actual = {"x": x, "choice": choice, "weight": layer.weight}
    actual |= {"gain": layer.affine.gain, "shift": layer.affine.shift}
    if bias:
        actual["bias"] = layer.bias
    leaves = {key: t.detach().clone().requires_grad_() for key, t in actual.items()}
    y, expected = layer(x, choice), textbook(conv, leaves, WIDTHS)
    assert relative_error(y, expected) <= 1e-10
    upstream = random_tensor(*y.shape, seed=9)
    got = torch.autograd.grad(y, list(actual.values()), upstream)
    want = torch.autograd.grad(expected, list(leaves.values()), upstream)
    for key, g, w in zip(actual, got, want, strict=True):
        assert relative_error(g, w) <= 1e-10, key


def test_sampled_choice_gradient_knows_the_offset_exactly() -> None:
    conv = float_conv(2, 3, 3, bias=False)
    layer = layer_with_affine(conv)
    x = random_tensor(1, 2, 5, 5, seed=1)
    choice = one_hot([1], 3).requires_grad_()
    upstream = random_tensor(1, 3, 3, 3, seed=2)
    exact = torch.autograd.grad(layer(x, choice), choice, upstream)[0]
    weights = layer.quantizer.quantize_weight(layer.weight)
    drawn = []
    for other in (0, 2):  # every draw there is, equally likely
        y = routed_conv2d(
            x, choice, weights, layer.affine.shift, Groups.of(choice), layer.geometry,
            layer.quantizer, Groups.of(one_hot([other], 3)), layer.affine.gain,
        )  # fmt: skip
        drawn.append(torch.autograd.grad(y, choice, upstream)[0])
    assert relative_error(sum(drawn) / 2, exact) <= 1e-10


def test_first_batch_aligns_every_width_with_the_last() -> None:
    torch.manual_seed(0)
    layer = QuantConv2d(8, 16, 3, padding=1, bias=False, widths=WIDTHS, width_affine=True)
    x = torch.rand(32, 8, 12, 12)
    with torch.no_grad():
        plain = QuantConv2d(8, 16, 3, padding=1, bias=False, widths=WIDTHS)
        plain.weight.copy_(layer.weight)
        statistics = {}
        for k in range(3):
            choice = one_hot([k] * 32, 3).float()
            for name, one in (("plain", plain), ("aligned", layer)):
                y = one(x, choice)
                statistics[name, k] = torch.stack((y.mean((0, 2, 3)), y.std((0, 2, 3))))
    for k in range(3):
        torch.testing.assert_close(
            statistics["aligned", k], statistics["plain", 2], rtol=1e-3, atol=1e-4
        )
    # without it they are far apart
    assert (statistics["plain", 0][1] / statistics["plain", 2][1]).max() < 0.8


def test_constant_channels_keep_finite_gains() -> None:
    affine = WidthAffine(2, 3)
    low, high = torch.randn(2, 64, 3, 2, 2)
    low[:, 0] = 7.0  # constant at the low width alone
    low[:, 1], high[:, 1] = 2.0, 5.0  # constant at both
    affine.initialize([low, high])
    gain, shift = affine.gain.detach(), affine.shift.detach()
    assert gain[0, 0].item() == pytest.approx(LARGEST_GAIN)
    assert gain[0, 1] == 1
    assert shift[0, 1].item() == pytest.approx(3)
    assert torch.isfinite(gain).all()
    assert torch.isfinite(shift).all()


def test_initialised_once_and_remembered_by_a_checkpoint() -> None:
    conv = nn.Conv2d(2, 3, 3)
    first = QuantConv2d.from_float(conv, WIDTHS, width_affine=True)
    first(torch.rand(4, 2, 6, 6), one_hot([0, 1, 2, 2], 3).float())
    learned = first.affine.gain.detach().clone()
    assert not torch.equal(learned, torch.ones_like(learned))
    second = QuantConv2d.from_float(nn.Conv2d(2, 3, 3), WIDTHS, width_affine=True)
    second.load_state_dict(first.state_dict())
    second(torch.rand(4, 2, 6, 6) * 3, one_hot([0, 1, 2, 2], 3).float())
    assert torch.equal(second.affine.gain, learned)


def test_evaluation_notices_a_changed_gain() -> None:
    layer = layer_with_affine(float_conv(2, 3, 3)).eval()
    x, choice = random_tensor(2, 2, 5, 5), one_hot([0, 2], 3)
    with torch.no_grad():
        before = layer(x, choice)
        layer.affine.gain.mul_(2)
        after = layer(x, choice)
    assert not torch.equal(before, after)


def test_static_layers_have_none() -> None:
    layer = QuantConv2d(2, 3, 3, widths=(3,), width_affine=True)
    assert layer.affine is None
    assert quantized(float_conv(2, 3, 3), (2, 3)).affine is None
