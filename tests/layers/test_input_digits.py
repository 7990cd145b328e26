"""Convolutions digit by digit are exactly the convolutions of whole integers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d
from torch import nn

from dqnet.errors import UserError
from dqnet.layers import QuantConv2d, QuantLinear
from dqnet.layers.input_digits import forward_by_digits, split_digits

PAIRS = [(8, 1), (8, 2), (8, 3), (8, 4), (8, 8), (5, 2), (16, 4), (2, 8)]


def integers(shape, bits, signed, seed=0):
    generator = torch.Generator().manual_seed(seed)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    return torch.randint(low, high, shape, generator=generator)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("bits", "digit_bits"), PAIRS)
def test_digits_are_those_of_python(bits, digit_bits, signed):
    codes = torch.arange(2**bits) - (2 ** (bits - 1) if signed else 0)
    digits = split_digits(codes, bits, digit_bits, signed)
    count, base = -(-bits // digit_bits), 2**digit_bits
    assert digits.shape == (count, len(codes))
    assert torch.equal(sum(digit * base**i for i, digit in enumerate(digits)), codes)
    # Lower digits are unsigned; the last one has the sign, within its bits.
    assert (digits[:-1] >= 0).all() and (digits < base).all()
    assert (digits[-1] >= (-base // 2 if signed else 0)).all()
    if not signed:
        last = np.base_repr(2**bits - 1, base).lower() if base <= 36 else None
        got = [int(digit) for digit in digits[:, -1].flip(0)]
        assert last is None or got == [int(c, 36) for c in last]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("bits", "digit_bits"), PAIRS)
def test_a_convolution_is_scipys_of_whole_integers(bits, digit_bits, signed):
    layer = QuantConv2d(3, 2, 3, padding=1, widths=(2,))
    codes, weight = integers((2, 3, 6, 5), bits, signed), integers((2, 3, 3, 3), 2, True, seed=1)
    actual = forward_by_digits(layer.geometry, codes, weight, bits, digit_bits, signed)
    assert actual.dtype == torch.int64
    for n in range(2):
        for o in range(2):
            planes = zip(codes[n].numpy(), weight[o].numpy(), strict=True)
            assert np.array_equal(actual[n, o], sum(correlate2d(*p, mode="same") for p in planes))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("digit_bits", [1, 2, 3])
@pytest.mark.parametrize("kind", ["convolution", "fully connected"])
def test_a_first_layer_of_8_bit_pixels_is_computed_exactly(kind, digit_bits, signed):
    """Scales are powers of two, so that the layer itself rounds nothing."""
    torch.manual_seed(0)
    if kind == "convolution":
        own, cls, x = nn.Conv2d(3, 4, 3, 2, 1, bias=False), QuantConv2d, torch.rand(5, 3, 9, 9)
    else:
        own, cls, x = nn.Linear(12, 4, bias=False), QuantLinear, torch.rand(5, 12)
    x = (x - 0.4 * signed).double()
    layer = cls.from_float(own, ("w2a8",), "fixed_point", signed=signed).double()
    y = layer(x)
    codes = layer.input_quantizer.encode(x, 0)
    weight = layer.weight_quantizer.encode(layer.weight, 0)
    sums = forward_by_digits(layer.geometry, codes.codes, weight.codes, 8, digit_bits, signed)
    assert torch.equal(sums * codes.scale * weight.scale, y)


@pytest.mark.parametrize(("code", "signed"), [(256, False), (-1, False), (128, True), (-129, True)])
def test_codes_of_more_bits_are_refused(code, signed):
    with pytest.raises(UserError, match=r"not in .* the range of 8 bits"):
        split_digits(torch.tensor([0, code]), 8, 2, signed)
