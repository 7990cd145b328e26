"""Winograd's convolutions in full precision, and what they cost."""

from __future__ import annotations

import re
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from comparison import random_tensor
from torch import nn

from dqnet.errors import UserError
from dqnet.layers.winograd import ALGORITHMS, Transforms, Winograd, why_direct

TILES = [2, 4]


@pytest.mark.parametrize("tile", TILES)
def test_the_matrices_make_a_correlation_of_three_taps(tile):
    """Σ_t Aᵀ[i, t] G[t, k] Bᵀ[t, j] is 1 where j = i + k, else 0; in exact fractions."""
    own = ALGORITHMS[tile]
    for i in range(tile):
        for k in range(3):
            for j in range(tile + 2):
                total = sum(
                    Fraction(own.output[i][t] * own.weight[t][k] * own.input[t][j], own.denominator)
                    for t in range(tile + 2)
                )
                assert total == (j == i + k)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("size", [(3, 3), (4, 7), (6, 6), (9, 14), (10, 5)])
def test_it_is_the_direct_convolution(tile, size):
    x, weight = random_tensor(2, 3, *size), random_tensor(5, 3, 3, 3, seed=1)
    torch.testing.assert_close(Transforms(tile).double()(x, weight), F.conv2d(x, weight))


@pytest.mark.parametrize("tile", TILES)
def test_its_gradients_are_those_of_the_direct_convolution(tile):
    leaves = [random_tensor(2, 3, 7, 9).requires_grad_(), random_tensor(4, 3, 3, 3, seed=1)]
    leaves[1].requires_grad_()
    upstream = random_tensor(2, 4, 5, 7, seed=2)
    expected = torch.autograd.grad(F.conv2d(*leaves), leaves, upstream)
    actual = torch.autograd.grad(Transforms(tile).double()(*leaves), leaves, upstream)
    torch.testing.assert_close(actual, expected)


class Counted:
    """A vector's element that counts additions; multiplying by 2ⁿ is a shift and costs nothing."""

    additions = 0

    def __init__(self, row):
        self.row = np.array(row)

    def __add__(self, other):
        Counted.additions += 1
        return Counted(self.row + other.row)

    def __sub__(self, other):
        Counted.additions += 1
        return Counted(self.row - other.row)

    def __rmul__(self, power):
        assert power in (2, 4, 8)
        return Counted(power * self.row)


def input_2(a, b, c, d):
    return a - c, b + c, c - b, b - d


def output_2(a, b, c, d):
    return a + b + c, b - c - d


def input_4(a, b, c, d, e, f):
    even, odd, outer = e - c, d - b, e - 4 * c
    inner = d - 4 * b
    return (
        4 * (a - c) + even, outer + inner, outer - inner,
        even + 2 * odd, even - 2 * odd, f - d - 4 * odd,
    )  # fmt: skip


def output_4(a, b, c, d, e, f):
    sums, differences, more, less = b + c, b - c, d + e, d - e
    return (
        a + sums + more, differences + 2 * less, sums + 4 * more, differences + 8 * less + f,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("tile", "which", "factored"),
    [
        (2, "input", input_2),
        (2, "output", output_2),
        (4, "input", input_4),
        (4, "output", output_4),
    ],
)
def test_additions_are_those_of_the_factored_form(tile, which, factored):
    Counted.additions = 0
    rows = [own.row for own in factored(*map(Counted, np.eye(tile + 2, dtype=int)))]
    assert np.array_equal(rows, getattr(ALGORITHMS[tile], which))
    assert Counted.additions == getattr(ALGORITHMS[tile], f"{which}_additions")


def test_products_and_additions_of_a_tile_are_the_papers():
    """Lavin, Gray 2016, section 4.1: 32 and 24 additions, 16 products for F(2x2, 3x3)."""
    small, large = Winograd(2), Winograd(4)
    assert (small.taps, small.additions(1, 0), small.additions(0, 1)) == (16, 32, 24)
    # Twelve vectors of the input's transform, ten of the output's.
    assert (large.taps, large.additions(3, 0), large.additions(0, 5)) == (36, 3 * 144, 5 * 100)
    assert (small.tiles(8, 8), large.tiles(8, 8)) == (16, 4)
    assert (small.tiles(7, 1), large.tiles(9, 5)) == (4, 6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tile": 3}, "winograd tile 3 must be 2 or 4"),
        ({"scales": "taps"}, "unknown winograd scales 'taps'; did you mean 'tap'"),
        ({"bits": 1}, "winograd bits 1 must be an integer from 2 to 16"),
        ({"bits": 8.5}, "winograd bits 8.5 must be an integer from 2 to 16"),
        ({"bits": True}, "winograd bits True must be an integer from 2 to 16"),
        ({"learned": 1}, "winograd learned 1 must be true or false"),
    ],
)
def test_other_settings_are_refused(wrong, message):
    with pytest.raises(UserError, match=re.escape(message)):
        Winograd(**wrong)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, None),
        ({"padding": 2, "padding_mode": "reflect"}, None),
        ({"stride": 2}, "stride 2"),
        ({"stride": (1, 2)}, "stride 2"),
        ({"dilation": 2}, "dilation 2"),
        ({"groups": 4}, "4 groups"),
        ({"kernel_size": 5}, "5 x 5"),
        ({"kernel_size": (3, 1)}, "3 x 1"),
    ],
)
def test_why_a_convolution_is_multiplied_directly(options, reason):
    assert why_direct(nn.Conv2d(4, 8, **{"kernel_size": 3} | options)) == reason
