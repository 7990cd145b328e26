"""PACT against eqs. 1 to 3 of https://arxiv.org/abs/1805.06085."""

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

from dqnet.errors import UserError
from dqnet.formats import Format
from dqnet.quantizers import find_quantizers
from dqnet.quantizers.dorefa import DoReFaWeight
from dqnet.quantizers.pact import PACT, pact_activation

ALPHA = 2.7


def alpha_of(value: float = ALPHA) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("width", ALL_WIDTHS)
def test_activation_is_the_nearest_level(width, signed):
    x = spread_values(ALPHA)
    levels = even_levels(-ALPHA if signed else 0.0, ALPHA, width)
    assert_levels(pact_activation(x, alpha_of(), width, signed), nearest(x.numpy(), levels))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("width", range(1, 9))
def test_activation_takes_every_level_and_no_other(width, signed):
    x = torch.linspace(-2 * ALPHA, 2 * ALPHA, 5000, dtype=torch.float64)
    values = pact_activation(x, alpha_of(), width, signed).detach().numpy()
    levels = even_levels(-ALPHA if signed else 0.0, ALPHA, width)
    taken = np.abs(values[:, None] - levels).argmin(1)
    np.testing.assert_allclose(values, levels[taken], rtol=1e-12, atol=1e-13)
    assert set(taken) == set(range(2**width))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("width", ALL_WIDTHS)
def test_activation_of_an_activation_is_itself(width, signed):
    once = pact_activation(spread_values(ALPHA), alpha_of(), width, signed)
    torch.testing.assert_close(
        pact_activation(once, alpha_of(), width, signed), once, rtol=1e-14, atol=1e-15
    )


def test_activation_by_hand():
    x = torch.tensor([-1.0, 0.4, 0.6, 1.4, 2.4, 3.0, 50.0], dtype=torch.float64)
    assert_levels(pact_activation(x, alpha_of(3.0), 2), np.array([0.0, 0, 1, 1, 2, 3, 3]))
    # Signed: the four levels are -3, -1, 1 and 3.
    x = torch.tensor([-9.0, -2.1, -1.9, -0.1, 0.1, 1.9, 2.1, 9.0], dtype=torch.float64)
    expected = np.array([-3.0, -3, -1, -1, 1, 1, 3, 3])
    assert_levels(pact_activation(x, alpha_of(3.0), 2, signed=True), expected)


@pytest.mark.parametrize("width", [1, 2, 4, 16])
@pytest.mark.parametrize(
    ("signed", "to_x", "to_alpha"),
    [
        # x:       -9 -2.7 -1  0  1 2.69 2.7 9
        (False, [0, 0, 0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 1, 1]),
        (True, [0, 0, 1, 1, 1, 1, 0, 0], [-1, -1, 0, 0, 0, 0, 1, 1]),
    ],
)
def test_gradients_follow_the_papers_rule_element_by_element(width, signed, to_x, to_alpha):
    x = torch.tensor([-9, -ALPHA, -1, 0, 1, 2.69, ALPHA, 9], dtype=torch.float64)
    for i in range(len(x)):
        element, alpha = x[i : i + 1].clone().requires_grad_(), alpha_of()
        pact_activation(element, alpha, width, signed).backward(torch.tensor([5.0]).double())
        assert element.grad.item() == 5 * to_x[i]
        assert alpha.grad.item() == 5 * to_alpha[i]


@pytest.mark.parametrize("signed", [False, True])
def test_gradients_are_those_of_the_clip_by_finite_differences(signed):
    x = spread_values(ALPHA, count=60).requires_grad_()
    alpha = alpha_of()
    upstream = spread_values(1.0, count=60, seed=1)
    pact_activation(x, alpha, 4, signed).backward(upstream)

    def clip(x, alpha):
        return np.clip(x, -alpha if signed else 0.0, alpha)

    values, at = x.detach().numpy(), upstream.numpy()
    expected = numeric_gradient(lambda v: clip(v, ALPHA), values, at)
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-8, atol=1e-9)
    expected = numeric_gradient(lambda a: clip(values, a), np.array(ALPHA), at)
    np.testing.assert_allclose(alpha.grad.numpy(), expected, rtol=1e-8)


def test_weights_are_dorefas():
    assert find_quantizers("pact") == (DoReFaWeight, PACT)


@pytest.mark.parametrize("alpha", [0.0, -3.0])
@pytest.mark.parametrize("signed", [False, True])
def test_an_alpha_driven_below_zero_still_gives_finite_values_of_the_right_sign(alpha, signed):
    x = spread_values(1.0, count=100)
    quantized = pact_activation(x, alpha_of(alpha), 3, signed)
    assert quantized.isfinite().all()
    assert (quantized * x >= 0).all()


def test_an_alpha_driven_below_zero_is_pulled_back_by_its_gradient():
    """Clipped elements that should be larger make α grow again: the gradient is still eq. 3's."""
    alpha = alpha_of(-3.0)
    pact_activation(torch.ones(4, dtype=torch.float64), alpha, 3).sum().backward()
    assert alpha.grad == 4


@pytest.mark.parametrize("alpha", [0, -1.0])
def test_an_initial_alpha_that_is_not_positive_is_refused(alpha):
    with pytest.raises(UserError, match="alpha_init"):
        PACT([Format(2)], alpha_init=alpha)


def test_one_alpha_serves_every_width():
    quantizer = PACT(map(Format, (2, 3, 4)), alpha_init=5.0)
    (alpha,) = quantizer.parameters()
    assert alpha.shape == ()
    assert alpha == 5
    assert quantizer.decayed == ("alpha",)
    x = torch.full((1,), 100.0)
    assert [quantizer(x, k).item() for k in range(3)] == [5, 5, 5]
