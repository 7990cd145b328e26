"""Powers of two against the equations of INQ, written out in NumPy."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from dqnet.errors import UserError
from dqnet.formats import Format
from dqnet.quantizers import find_quantizers
from dqnet.quantizers.power_of_two import PowerOfTwo


def by_equations(w, bits):
    """Eqs. 2 and 4 of the paper, with 2ᵇ⁻¹ − 1 magnitudes."""
    n1 = math.floor(math.log2(4 * np.abs(w).max() / 3))
    n2 = n1 + 1 - (2 ** (bits - 1) - 1)
    levels = np.array([0, *(2.0**n for n in range(n2, n1 + 1))])
    result = np.zeros_like(w)
    for alpha, beta in pairwise(levels):
        chosen = ((alpha + beta) / 2 <= np.abs(w)) & (np.abs(w) < 3 * beta / 2)
        result[chosen] = beta * np.sign(w[chosen])
    return result


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("largest", [0.74, 0.75, 0.76, 1.0, 37.3, 1e-3])
def test_weights_are_the_equations(bits, largest):
    w = torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 3
    w = w / w.abs().max() * largest
    w[:40] = torch.cat([2.0 ** -torch.arange(20), 3 * 2.0 ** -torch.arange(20) / 2]) * largest / 2
    quantizer = PowerOfTwo([Format(bits)])
    actual = quantizer(w.view(20, 25), 0)
    np.testing.assert_array_equal(actual.flatten(), by_equations(w.numpy(), bits))
    codes = quantizer.encode(w.view(20, 25), 0)
    assert torch.equal(codes.values(), actual)
    assert codes.codes.max() < 2**bits - 1 and codes.codes.min() >= 0
    assert math.frexp(codes.scale.item())[0] == 0.5  # a power of two


@pytest.mark.parametrize(("granularity", "count"), [("per_channel", 6), ("block", 3)])
def test_rows_have_exponents_of_their_own(granularity, count):
    w = torch.randn(6, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w *= torch.logspace(-3, 2, 6, dtype=torch.float64)[:, None]
    quantizer = PowerOfTwo([Format(4)], channels=6, granularity=granularity, block=100)
    rows = w if granularity == "per_channel" else w.flatten().split(100)
    expected = np.concatenate([by_equations(row.numpy(), 4) for row in rows])
    np.testing.assert_array_equal(quantizer(w, 0).flatten(), expected)
    assert quantizer.encode(w, 0).scale.numel() == count


def test_the_gradient_goes_straight_through():
    w = torch.linspace(-1, 1, 11).view(1, -1).requires_grad_()
    PowerOfTwo([Format(3)])(w, 0).sum().backward()
    assert torch.equal(w.grad, torch.ones(1, 11))


def test_zeros_stay_zeros_and_nan_is_not_hidden():
    assert torch.equal(PowerOfTwo([Format(4)])(torch.zeros(2, 3), 0), torch.zeros(2, 3))
    y = PowerOfTwo([Format(4)], channels=2, granularity="per_channel")(
        torch.tensor([[1.0, torch.nan], [0.5, 2.0]]), 0
    )
    assert y[0, 1].isnan() and y[1].tolist() == [0.5, 2.0]


@pytest.mark.parametrize("bits", [1, 9, 16])
def test_other_bits_are_refused(bits):
    with pytest.raises(UserError, match=f"at least 2 bits and at most 8, not {bits}"):
        PowerOfTwo([Format(bits)])


def test_it_is_of_weights():
    with pytest.raises(UserError, match="'power_of_two' is not for a layer's input"):
        find_quantizers("power_of_two")
