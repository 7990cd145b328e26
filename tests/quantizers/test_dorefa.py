"""DoReFa against eqs. 5, 7, 9 and 10 of https://arxiv.org/abs/1606.06160."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from formats import (
    ALL_WIDTHS,
    assert_levels,
    even_levels,
    nearest,
    numeric_gradient,
    spread_values,
)

from dqnet.formats import Format
from dqnet.quantizers.dorefa import (
    DoReFaInput,
    DoReFaWeight,
    dorefa_activation,
    dorefa_weight,
)


def random_weight(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("width", ALL_WIDTHS)
def test_activation_is_the_nearest_level(width, signed):
    x = spread_values(1.0)
    levels = even_levels(-1.0 if signed else 0.0, 1.0, width)
    assert_levels(dorefa_activation(x, width, signed), nearest(x.numpy(), levels))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("width", range(1, 9))
def test_activation_takes_every_level_and_no_other(width, signed):
    x = torch.linspace(-2, 2, 5000, dtype=torch.float64)
    values = dorefa_activation(x, width, signed).unique()
    assert_levels(values, even_levels(-1.0 if signed else 0.0, 1.0, width))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("width", ALL_WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_activation_of_an_activation_is_itself(width, signed, dtype):
    once = dorefa_activation(spread_values(1.0).to(dtype), width, signed)
    assert torch.equal(dorefa_activation(once, width, signed), once)


def test_activation_by_hand():
    x = torch.tensor([-3.0, -0.4, 0.1, 0.2, 0.49, 0.51, 0.9, 7.0], dtype=torch.float64)
    thirds = np.array([0, 0, 0, 1, 1, 2, 3, 3]) / 3
    assert_levels(dorefa_activation(x, 2), thirds)
    signed_thirds = np.array([-3, -1, 1, 1, 1, 1, 3, 3]) / 3
    assert_levels(dorefa_activation(x, 2, signed=True), signed_thirds)


@pytest.mark.parametrize(
    ("signed", "passes"),
    [(False, [0, 0, 1, 1, 1, 1, 0, 0]), (True, [0, 1, 1, 1, 1, 1, 0, 0])],
)
def test_activation_gradient_passes_inside_the_clip_and_at_its_ends(signed, passes):
    x = torch.tensor(
        [-1.01, -1.0, 0.0, 0.3, 0.5, 1.0, 1.01, 9.0], dtype=torch.float64, requires_grad=True
    )
    upstream = torch.arange(1.0, 9.0, dtype=torch.float64)
    dorefa_activation(x, 3, signed).backward(upstream)
    assert torch.equal(x.grad, upstream * torch.tensor(passes))


@pytest.mark.parametrize("width", range(2, 17))
def test_weight_is_the_nearest_level_of_the_normalised_tanh(width):
    weight = random_weight(8, 5, 3, 3)
    squashed = np.tanh(weight.numpy())
    expected = nearest(squashed / np.abs(squashed).max(), even_levels(-1.0, 1.0, width))
    assert_levels(dorefa_weight(weight, width), expected)


@pytest.mark.parametrize("width", range(2, 17))
def test_weight_reaches_the_end_of_its_range(width):
    quantized = dorefa_weight(random_weight(64), width)
    assert quantized.abs().max() == 1


def test_one_bit_weight_is_the_sign_times_the_mean_magnitude():
    weight = torch.tensor([-4.0, -0.5, 0.0, 1.5], dtype=torch.float64)
    assert_levels(dorefa_weight(weight, 1), np.array([-1.5, -1.5, 1.5, 1.5]))


def test_one_bit_weight_of_a_one_bit_weight_is_itself():
    once = dorefa_weight(random_weight(50), 1)
    torch.testing.assert_close(dorefa_weight(once, 1), once, rtol=1e-14, atol=0)


def test_two_bit_weight_by_hand():
    # The largest tanh is 0.8: the normalised values are 1, -1, 1/4, -1/4, 3/4 and -5/8.
    weight = torch.tensor([0.8, -0.8, 0.2, -0.2, 0.6, -0.5], dtype=torch.float64).atanh()
    assert_levels(dorefa_weight(weight, 2), np.array([1, -1, 1 / 3, -1 / 3, 1, -1 / 3]))


@pytest.mark.parametrize("width", [2, 3, 8, 16])
@pytest.mark.parametrize("seed", range(3))
def test_weight_gradient_is_that_of_the_formula_without_the_rounding(width, seed):
    """Rounding is straight-through, so finite differences see tanh w / max|tanh w|."""
    weight = random_weight(4, 3, 2, seed=seed).requires_grad_()
    upstream = random_weight(4, 3, 2, seed=seed + 100)
    dorefa_weight(weight, width).backward(upstream)

    def formula(w):
        return np.tanh(w) / np.abs(np.tanh(w)).max()

    expected = numeric_gradient(formula, weight.detach().numpy(), upstream.numpy())
    np.testing.assert_allclose(weight.grad.numpy(), expected, rtol=1e-7, atol=1e-8)


def test_one_bit_weight_gradient_passes_unchanged():
    weight = random_weight(6).requires_grad_()
    upstream = random_weight(6, seed=1)
    dorefa_weight(weight, 1).backward(upstream)
    assert torch.equal(weight.grad, upstream)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 2, 3, 16])
def test_all_zero_weight_has_finite_values_and_gradients(width, dtype):
    weight = torch.zeros(3, 2, dtype=dtype, requires_grad=True)
    quantized = dorefa_weight(weight, width)
    quantized.backward(torch.full_like(weight, 100.0))
    assert quantized.isfinite().all()
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("width", [2, 3, 4])
def test_all_zero_weight_becomes_one_of_the_levels_next_to_zero(width):
    quantized = dorefa_weight(torch.zeros(5, dtype=torch.float64), width)
    assert_levels(quantized.abs(), np.full(5, 1 / (2**width - 1)))


@pytest.mark.parametrize("widths", [(1, 2, 3), (2, 5), (16,), (3, 1, 2)])
def test_weights_at_several_widths_are_those_at_each_width(widths):
    weight = random_weight(7, 3)
    together = DoReFaWeight(map(Format, widths)).all_formats(weight)
    assert len(together) == len(widths)
    for width, quantized in zip(widths, together, strict=True):
        assert torch.equal(quantized, dorefa_weight(weight, width))


@pytest.mark.parametrize("signed", [False, True])
def test_inputs_are_left_as_they_were(signed):
    x = spread_values(1.0)
    before = x.clone()
    dorefa_activation(x, 3, signed)
    dorefa_weight(x, 3)
    dorefa_weight(x, 1)
    assert torch.equal(x, before)


def test_it_has_no_parameters():
    formats = Format(2), Format(3)
    assert not [*DoReFaWeight(formats).parameters(), *DoReFaInput(formats).parameters()]
