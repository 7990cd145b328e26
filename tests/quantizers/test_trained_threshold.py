"""Thresholds learned as logarithms, against the formula with straight-through operations."""

from __future__ import annotations

import pytest
import torch

from dqnet.quantizers.trained_threshold import TrainedThreshold, trained_threshold


def straight(x, y):
    return y.detach() + (x - x.detach())


def written_out(x, log2_threshold, bits):
    """clip(⌊x/s⌉, …) · s, the rounding and the ceiling having a gradient of 1."""
    step = 2 ** (straight(log2_threshold, log2_threshold.ceil()) - (bits - 1))
    codes = straight(x / step, (x / step).round())
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    # Not clamp, whose gradient at the ends depends on the version of PyTorch.
    return codes.where((codes >= low) & (codes <= high), codes.detach().clamp(low, high)) * step


@pytest.mark.parametrize("bits", [2, 3, 8, 10])
@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 1, 1), (3, 4, 1)])
def test_values_and_gradients_are_those_of_the_formula(bits, shape):
    generator = torch.Generator().manual_seed(bits)
    draw = {"generator": generator, "dtype": torch.float64}
    x = torch.randn(3, 4, 50, **draw).mul_(2).requires_grad_()
    # Thresholds within the values, so that some are clipped on either side.
    log2_threshold = (torch.randn(shape, **draw) * 0.7).requires_grad_()
    upstream = torch.randn(3, 4, 50, **draw)
    expected = written_out(x, log2_threshold, bits)
    actual = trained_threshold(x, log2_threshold, bits)
    assert torch.equal(actual, expected.detach())
    assert ((actual / x).detach().abs() < 0.8).any(), "nothing is clipped"
    leaves = [x, log2_threshold]
    torch.testing.assert_close(
        torch.autograd.grad(actual, leaves, upstream),
        torch.autograd.grad(expected, leaves, upstream),
    )


@pytest.mark.parametrize(("rows", "expected"), [(3, [2.0, -3.0, 0.0]), (1, [2.0])])
def test_thresholds_are_the_largest_magnitudes_in_the_given_unit(rows, expected):
    quantizer = TrainedThreshold(8, rows, learned=True)
    quantizer.observe(torch.tensor([[0.5, -2.0], [0.0625, float("nan")], [0.0, 0.0]]))
    quantizer.observe(torch.tensor([[-1.0, 0.0], [0.0, float("inf")], [0.0, 0.0]]))
    quantizer.observed_in(torch.tensor(0.5))
    quantizer.complete()
    assert quantizer.ready and quantizer.log2_threshold.tolist() == expected


def test_what_is_observed_is_hardly_clipped():
    """By one step at most, where the largest magnitude is a power of two."""
    x = torch.tensor([[7.9, -8.0, 8.0, 0.06]])
    quantizer = TrainedThreshold(8, 1, learned=False)
    quantizer.observe(x)
    quantizer.complete()
    assert quantizer(x).tolist() == [[7.875, -8.0, 7.9375, 0.0625]]
    assert not quantizer.log2_threshold.requires_grad
