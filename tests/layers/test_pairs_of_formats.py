"""Precisions whose weights and inputs differ, against the textbook form of each pair."""

from __future__ import annotations

import pytest
import textbook
import torch
from comparison import (
    convolve_like,
    float_conv,
    one_hot,
    quantizer_parameters,
    random_tensor,
    relative_error,
)

from dqnet.layers import QuantConv2d

#: weight bits and input bits
PAIRS = ((2, 4), (2, 8), (4, 8), (8, 8))


def textbook_form(conv, name, signed, x, choice, leaves):
    """Σ_k choice[:, k] · conv(Q(x), Q(w)), every tensor in its own bits and with its own step."""
    weights, inputs = [2, 4, 8], [4, 8]
    y = 0
    for k, (weight_bits, input_bits) in enumerate(PAIRS):
        w = textbook.quantize_weight(
            leaves["weight"], name, weights, weights.index(weight_bits), leaves
        )
        q = textbook.quantize_input(x, name, inputs, inputs.index(input_bits), signed, leaves)
        y = y + choice[:, k].view(-1, 1, 1, 1) * convolve_like(conv)(q, w)
    return y + leaves["bias"].view(-1, 1, 1)


@pytest.mark.parametrize("name", ["dorefa", "pact", "lsq"])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("columns", [[0, 1, 2, 3, 1], [2, 2, 2, 2, 2]], ids=["mixed", "one"])
def test_outputs_and_gradients_are_those_of_every_pair(name, signed, columns):
    conv = float_conv(2, 3, 3, padding=1)
    options = {"alpha_init": 0.9} if name == "pact" else None
    widths = [f"w{w}a{a}" for w, a in PAIRS]
    layer = QuantConv2d.from_float(conv, widths, name, signed, options).double()
    x = random_tensor(5, 2, 6, 6, seed=5).requires_grad_()
    choice = one_hot(columns, len(PAIRS)).requires_grad_()
    layer(x, choice)  # LSQ's first batch
    named = {"weight": layer.weight, "bias": layer.bias, **quantizer_parameters(layer)}
    expected = textbook_form(conv, name, signed, x, choice, named)
    actual = layer(x, choice)
    assert relative_error(actual, expected) <= 1e-10
    upstream = random_tensor(*actual.shape, seed=6)
    leaves = [x, choice, *named.values()]
    gradients = torch.autograd.grad(actual, leaves, upstream)
    for got, want in zip(gradients, torch.autograd.grad(expected, leaves, upstream), strict=True):
        assert relative_error(got, want) <= 1e-10


def test_pairs_share_the_steps_that_they_have_in_common():
    layer = QuantConv2d(2, 3, 3, widths=[f"w{w}a{a}" for w, a in PAIRS], quantizer="lsq")
    assert layer.weight_quantizer.step.shape == (3,)
    assert layer.input_quantizer.step.shape == (2,)
    weights = layer.quantized_weights()
    assert weights[0] is weights[1] and weights[0] is not weights[2]
