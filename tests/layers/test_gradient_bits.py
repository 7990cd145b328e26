"""Gradients of few bits, against eq. 12 of https://arxiv.org/abs/1606.06160 in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from comparison import random_tensor
from torch import nn

import dqnet
from dqnet.layers import QuantConv2d, QuantLayer, QuantLinear
from dqnet.layers.gradient_bits import quantize_gradient, quantized_gradient

BITS = [1, 2, 6, 16]


def written_out(grad, bits, uniform):
    """The equation, N(k) = σ / (2^g − 1) with σ in [−½, ½), of draws from [0, 1)."""
    levels = 2**bits - 1
    top = np.abs(grad).reshape(len(grad), -1).max(1).reshape(-1, *[1] * (grad.ndim - 1))
    noise = (uniform - 0.5) / levels
    code = np.round(levels * np.clip(grad / (2 * top) + 0.5 + noise, 0, 1))
    return 2 * top * (code / levels - 0.5)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(4, 3, 5, 5), (4, 7), (4, 2, 3)])
def test_the_gradient_is_the_papers_and_the_output_stays(bits, shape):
    y, grad = random_tensor(*shape).requires_grad_(), random_tensor(*shape, seed=1)
    z = quantize_gradient(y, bits)
    assert torch.equal(z, y)
    torch.manual_seed(5)
    z.backward(grad)
    torch.manual_seed(5)
    expected = written_out(grad.numpy(), bits, torch.rand(shape).double().numpy())
    np.testing.assert_allclose(y.grad, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_its_mean_over_many_draws_is_the_gradient(bits):
    torch.manual_seed(0)
    grad, draws = random_tensor(2, 3, 4), 4000
    mean = torch.stack([quantized_gradient(grad, bits) for _ in range(draws)]).mean(0)
    step = 2 * grad.abs().amax((1, 2), keepdim=True) / (2**bits - 1)
    assert ((mean - grad).abs() <= 5 * step / 2 / draws**0.5).all()  # 5 deviations, at most


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_every_image_has_a_scale_of_its_own_and_as_many_values_as_bits_allow(bits):
    torch.manual_seed(0)
    scales = torch.tensor([1.0, 1e-6, 1e4, 0.0])
    grad = torch.rand(4, 30, 30) * 2 - 1
    grad[:, 0, 0] = 1
    quantized = quantized_gradient(grad * scales.view(-1, 1, 1), bits)
    for image, scale in zip(quantized[:3] / scales[:3].view(-1, 1, 1), scales, strict=False):
        levels = torch.linspace(-1, 1, 2**bits)
        assert scale > 0
        values = image.flatten()
        nearest = (values[:, None] - levels).abs().argmin(1)
        torch.testing.assert_close(values, levels[nearest], rtol=1e-4, atol=1e-6)
        assert set(nearest.tolist()) == set(range(2**bits))
    assert (quantized[3] == 0).all()


def test_what_is_not_a_number_is_not_hidden():
    grad = torch.tensor([[1.0, float("nan")], [1.0, 2.0]])
    quantized = quantized_gradient(grad, 4)
    assert quantized[0].isnan().any() and quantized[1].isfinite().all()


def layers():
    torch.manual_seed(0)
    return {
        "static": (QuantConv2d(3, 4, 3, padding=1, widths=(3,)), torch.rand(5, 3, 6, 6), None),
        "routed": (
            QuantConv2d(3, 4, 3, padding=1, widths=(2, 4), width_affine=True),
            torch.rand(5, 3, 6, 6),
            F.one_hot(torch.tensor([0, 1, 1, 0, 1]), 2).float(),
        ),
        "static, fully connected": (QuantLinear(6, 4, widths=(3,)), torch.rand(5, 6), None),
        "routed, fully connected": (
            QuantLinear(6, 4, widths=(2, 4)),
            torch.rand(5, 6),
            F.one_hot(torch.tensor([0, 1, 1, 0, 1]), 2).float(),
        ),
    }


@pytest.mark.parametrize("kind", layers())
@pytest.mark.parametrize("training", [True, False])
def test_a_layer_passes_on_what_follows_from_the_quantized_gradient(kind, training):
    layer, x, choice = layers()[kind]
    layer.train(training)
    x.requires_grad_()
    leaves = [x, *layer.parameters()]
    if choice is not None:
        leaves.append(choice.requires_grad_())

    y = layer(x, choice)
    upstream = random_tensor(*y.shape).float()
    torch.manual_seed(3)
    given = quantized_gradient(upstream, 2) if training else upstream
    expected = torch.autograd.grad(y, leaves, given)

    layer.gradient_bits = 2
    torch.manual_seed(3)
    actual = torch.autograd.grad(layer(x, choice), leaves, upstream)
    for got, want in zip(actual, expected, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("widths", [(2,), (2, 4)])
def test_with_autocast_the_gradient_keeps_its_type(widths):
    torch.manual_seed(0)
    layer = QuantConv2d(3, 4, 3, widths=widths)
    layer.gradient_bits = 3
    seen = []
    choice = F.one_hot(torch.arange(5) % len(widths), len(widths)).float()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.rand(5, 3, 6, 6), choice)
    assert y.dtype == torch.bfloat16
    # Between the layer and what quantizes its gradient.
    y.grad_fn.next_functions[0][0].register_prehook(lambda grads: seen.append(grads[0]))
    y.float().square().sum().backward()
    (grad,) = seen
    assert grad.dtype == torch.bfloat16
    assert all(len(image.unique()) <= 2**3 for image in grad)
    assert layer.weight.grad.isfinite().all() and layer.weight.grad.any()


def test_conversion_hands_it_to_every_quantized_layer():
    net = timm.create_model("resnet20_cifar")
    model = dqnet.quantize(net, torch.zeros(1, 3, 8, 8), (2, 4), gradient_bits=6)
    assert {m.gradient_bits for m in model.modules() if isinstance(m, QuantLayer)} == {6}
    model(torch.rand(2, 3, 8, 8)).logits.sum().backward()
    assert all(m.weight.grad.isfinite().all() for m in model.modules() if isinstance(m, nn.Conv2d))
