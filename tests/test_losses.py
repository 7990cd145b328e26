"""Penalties against their formulas, the other terms against NumPy."""

import math

import numpy as np
import pytest
import torch

from dqnet.losses import cost_penalty, distillation, mean_width_penalty, mutual_information


def information(scores):
    """H(mean p) − mean H(p) per layer, averaged over the layers, in NumPy."""
    e = np.exp(scores - scores.max(-1, keepdims=True))
    p = e / e.sum(-1, keepdims=True)

    def entropy(q):
        return -sum(v * math.log(v) for v in q if v > 0)

    layers = []
    for i in range(p.shape[1]):
        of_mean = entropy(p[:, i].mean(0))
        layers.append(of_mean - np.mean([entropy(q) for q in p[:, i]]))
    return np.mean(layers)


@pytest.mark.parametrize(
    ("cost", "target", "expected"),
    [([6.0, 10.0], 4.0, 1.0), ([5.0, 5.0, 5.0], 4.0, 0.25), ([3.0, 5.0], 4.0, 0.0)],
)
def test_cost_penalty_is_the_relative_excess(cost, target, expected):
    assert cost_penalty(torch.tensor(cost), target).item() == expected


@pytest.mark.parametrize(
    ("widths", "target", "expected"), [([3.0, 4.0], 3.0, 0.5), ([2.0, 4.0], 3.25, 0.0)]
)
def test_mean_width_penalty_is_the_excess_in_bits(widths, target, expected):
    assert mean_width_penalty(torch.tensor(widths), target).item() == expected


@pytest.mark.parametrize(("cost", "slope"), [([6.0, 10.0], 1 / (2 * 4.0)), ([1.0, 2.0], 0.0)])
def test_cost_penalty_gradient(cost, slope):
    x = torch.tensor(cost, requires_grad=True)
    cost_penalty(x, 4.0).backward()
    assert x.grad.tolist() == [slope, slope]


@pytest.mark.parametrize(("widths", "slope"), [([4.0, 4.0], 0.5), ([1.0, 2.0], 0.0)])
def test_mean_width_penalty_gradient(widths, slope):
    x = torch.tensor(widths, requires_grad=True)
    mean_width_penalty(x, 3.0).backward()
    assert x.grad.tolist() == [slope, slope]


@pytest.mark.parametrize("shape", [(1, 1, 2), (5, 3, 2), (16, 4, 5)])
def test_mutual_information_equals_numpy(shape):
    scores = 3 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert mutual_information(scores).item() == pytest.approx(
        information(scores.numpy()), abs=1e-12
    )


def test_mutual_information_is_zero_for_equal_images():
    scores = torch.randn(1, 4, 3, dtype=torch.float64).expand(8, -1, -1)
    assert mutual_information(scores).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_mutual_information_is_log_k_when_certain_and_even(k):
    scores = 200 * torch.eye(k, dtype=torch.float64).repeat(2, 1).unsqueeze(1)
    assert mutual_information(scores).item() == pytest.approx(math.log(k), abs=1e-12)


def test_mutual_information_does_not_depend_on_a_constant_per_image():
    scores = torch.randn(6, 2, 3, dtype=torch.float64)
    shifted = scores + 10 * torch.randn(6, 2, 1, dtype=torch.float64)
    torch.testing.assert_close(mutual_information(shifted), mutual_information(scores))


def test_mutual_information_gradcheck():
    scores = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mutual_information, (scores,))


def test_mutual_information_gradient_stays_finite_for_certain_images():
    scores = (1e4 * torch.eye(3)).unsqueeze(1).requires_grad_()
    mutual_information(scores).backward()
    assert scores.grad.isfinite().all()


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_distillation_is_the_divergence_from_the_teacher():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(5, 4)), 3 * rng.normal(size=(5, 4))
    p, q = softmax(teacher), softmax(student)
    logits = torch.tensor(student, requires_grad=True)
    divergence = distillation(logits, torch.tensor(teacher))
    assert divergence.item() == pytest.approx((p * np.log(p / q)).sum(-1).mean())
    divergence.backward()
    np.testing.assert_allclose(logits.grad, (q - p) / 5, rtol=1e-10)
    # Equal up to a constant means equal probabilities.
    assert distillation(logits + 2, logits).item() == pytest.approx(0, abs=1e-12)


def test_distillation_from_a_teacher_without_doubt():
    """Probabilities that round to zero add nothing, and no NaN."""
    sure = torch.tensor([[0.0, 500.0, -500.0]])
    uniform = torch.zeros(1, 3)
    assert distillation(uniform, sure).item() == pytest.approx(math.log(3))
