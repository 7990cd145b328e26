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
from dqnet.layers.routed import routed
from dqnet.layers.width_affine import WidthAffine
from dqnet.layers.width_groups import WidthGroups

WIDTHS = (1, 2, 4)


def layer_with_affine(conv: nn.Conv2d, widths: tuple[int, ...] = WIDTHS) -> QuantConv2d:
    layer = QuantConv2d.from_float(conv, widths, width_affine=True).double()
    if layer.affine is not None:
        with torch.no_grad():
            layer.affine.gain.copy_(1 + 0.3 * random_tensor(*layer.affine.gain.shape, seed=5))
            layer.affine.shift.copy_(random_tensor(*layer.affine.shift.shape, seed=6))
    return layer


def textbook(conv: nn.Conv2d, leaves: dict[str, Tensor], widths: tuple[int, ...]) -> Tensor:
    bias = leaves["bias"].view(-1, 1, 1) if "bias" in leaves else 0
    y = 0
    weights = [quantize_weight(leaves["weight"], "dorefa", widths, k, {}) for k in range(3)]
    for k in range(len(widths)):
        q = quantize_input(leaves["x"], "dorefa", widths, k, False, {})
        ratio = (weights[-1].norm() / weights[k].norm()).item()
        part = leaves["gain"][k].view(-1, 1, 1) * ratio * convolve_like(conv)(q, weights[k])
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
    weights = layer.quantized_weights()
    drawn = []
    for other in (0, 2):  # every draw there is, equally likely
        own = layer.pass_of(WidthGroups.of(choice), WidthGroups.of(one_hot([other], 3)))
        y = routed(x, choice, weights, layer.affine.shift, own, layer.affine.gains(weights))
        drawn.append(torch.autograd.grad(y, choice, upstream)[0])
    assert relative_error(sum(drawn) / 2, exact) <= 1e-10


def test_weights_of_all_widths_have_one_norm_before_their_gain() -> None:
    torch.manual_seed(0)
    layer = QuantConv2d(8, 16, 3, bias=False, widths=WIDTHS, width_affine=True)
    plain = layer.quantized_weights()
    scaled = torch.stack(layer.affine.scale(plain)).detach()
    torch.testing.assert_close(scaled[-1], plain[-1].detach())
    norms = scaled.square().sum((1, 2, 3, 4)).sqrt()
    torch.testing.assert_close(norms, norms[-1:].expand(3))
    assert plain[0].norm() < 0.5 * plain[2].norm()  # without it they are far apart


@pytest.mark.parametrize("empty", [(0,), (0, 1)])
def test_empty_weights_have_finite_gains(empty: tuple[int, ...]) -> None:
    weights = [torch.zeros(3, 4, 1, 1) if k in empty else torch.ones(3, 4, 1, 1) for k in (0, 1)]
    assert (WidthAffine(2, 3).gains(weights)[0] == 1).all()


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
