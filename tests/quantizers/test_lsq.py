"""LSQ against eqs. 1 to 3 and sections 2.1 and 2.2 of https://arxiv.org/abs/1902.08153."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from formats import ALL_WIDTHS, assert_levels, lsq_levels, nearest, spread_values

from dqnet.formats import Format
from dqnet.quantizers.lsq import LSQInput, LSQWeight, lsq

STEP = 0.37


def step_of(value: float = STEP) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def largest_code(width: int, signed: bool) -> int:
    """Q_P of section 2, and 1 for one signed bit."""
    if not signed:
        return 2**width - 1
    return max(2 ** (width - 1) - 1, 1)


def expected_initial_step(v: torch.Tensor, width: int, signed: bool) -> float:
    return 2 * np.abs(v.detach().numpy()).mean() / math.sqrt(largest_code(width, signed))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("width", ALL_WIDTHS)
def test_value_is_the_nearest_level(width, signed):
    v = spread_values(STEP * largest_code(width, signed))
    levels = lsq_levels(STEP, width, signed)
    assert len(levels) == 2**width
    expected = nearest(v.numpy(), levels)
    np.testing.assert_allclose(lsq(v, step_of(), width, signed).detach(), expected, rtol=1e-12)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("width", range(1, 9))
def test_every_level_is_taken_and_no_other(width, signed):
    levels = lsq_levels(STEP, width, signed)
    v = torch.from_numpy(np.linspace(1.5 * levels[0] - STEP, 1.5 * levels[-1], 4096))
    assert_levels(lsq(v, step_of(), width, signed).unique(), levels)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("width", ALL_WIDTHS)
def test_quantizing_twice_is_quantizing_once(width, signed):
    once = lsq(spread_values(STEP * 2**width), step_of(), width, signed)
    assert torch.equal(lsq(once, step_of(), width, signed), once)


def test_one_signed_bit_is_plus_or_minus_the_step():
    v = torch.tensor([-8.0, -0.1, 0.0, 0.1, 8.0], dtype=torch.float64)
    assert_levels(lsq(v, step_of(), 1, signed=True), STEP * np.array([-1, -1, 1, 1, 1]))


#: v/s, then round(clip(v/s)), the slope to the step (eq. 3) and to v (eq. 5), worked out by hand
SIGNED_THREE_BITS = [  # Q_N = 4, Q_P = 3
    (-5.0, -4, -4.0, 0),
    (-4.0, -4, -4.0, 0),
    (-3.25, -3, 0.25, 1),
    (-0.25, 0, 0.25, 1),
    (0.0, 0, 0.0, 1),
    (0.375, 0, -0.375, 1),
    (2.625, 3, 0.375, 1),
    (3.0, 3, 3.0, 0),
    (9.0, 3, 3.0, 0),
]
UNSIGNED_TWO_BITS = [  # Q_N = 0, Q_P = 3
    (-5.0, 0, 0.0, 0),
    (0.0, 0, 0.0, 0),
    (0.25, 0, -0.25, 1),
    (1.75, 2, 0.25, 1),
    (3.0, 3, 3.0, 0),
    (4.0, 3, 3.0, 0),
]
SIGNED_ONE_BIT = [  # Q_N = Q_P = 1, nothing in between
    (-2.0, -1, -1.0, 0),
    (-1.0, -1, -1.0, 0),
    (-0.25, -1, -0.75, 1),
    (0.0, 1, 1.0, 1),
    (0.75, 1, 0.25, 1),
    (1.0, 1, 1.0, 0),
]
BY_HAND = [
    *((3, True, *row) for row in SIGNED_THREE_BITS),
    *((2, False, *row) for row in UNSIGNED_TWO_BITS),
    *((1, True, *row) for row in SIGNED_ONE_BIT),
]


@pytest.mark.parametrize(("width", "signed", "ratio", "code", "to_step", "to_v"), BY_HAND)
def test_value_and_gradients_element_by_element(width, signed, ratio, code, to_step, to_v):
    step = step_of(0.5)
    v = torch.tensor([0.5 * ratio], dtype=torch.float64, requires_grad=True)
    quantized = lsq(v, step, width, signed)
    quantized.backward(torch.tensor([3.0], dtype=torch.float64))
    assert quantized.item() == 0.5 * code
    assert step.grad.item() == 3 * to_step
    assert v.grad.item() == 3 * to_v


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("width", [1, 2, 3, 8, 16])
def test_step_gradient_is_the_scaled_sum_over_the_elements(width, signed):
    levels = lsq_levels(1.0, width, signed)
    v = spread_values(STEP * largest_code(width, signed), count=500)
    upstream = spread_values(1.0, count=500, seed=1)
    step = step_of()
    lsq(v, step, width, signed, grad_scale=0.25).backward(upstream)
    ratio = v.numpy() / STEP
    inside = (ratio > levels[0]) & (ratio < levels[-1])
    slope = nearest(ratio, levels) - np.where(inside, ratio, 0)
    expected = 0.25 * (upstream.numpy() * slope).sum()
    np.testing.assert_allclose(step.grad.numpy(), expected, rtol=1e-9)


def formats(*widths: int) -> list[Format]:
    return [Format(width) for width in widths]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_gradient_scale_counts_weights_and_features_of_one_image(batch, signed):
    """g = 1/√(N·Q_P); N is the number of weights, or of features of one image."""
    widths = (1, 2, 5)
    of_weight = LSQWeight(formats(*widths), signed=True).double()
    of_input = LSQInput(formats(*widths), signed=signed).double()
    weight, x = spread_values(2.0, 24).view(4, 6), spread_values(2.0, batch * 10).view(batch, 10)
    for i, width in enumerate(widths):
        of_weight.zero_grad()
        of_input.zero_grad()
        of_weight(weight, i).sum().backward()
        step = step_of(1.0)
        lsq(weight, step, width, signed=True).sum().backward()
        expected = step.grad / math.sqrt(24 * largest_code(width, True))
        torch.testing.assert_close(of_weight.step.grad[i], expected, rtol=1e-12, atol=0)

        of_input(x, i).sum().backward()
        step = step_of(1.0)
        lsq(x, step, width, signed).sum().backward()
        expected = step.grad / math.sqrt(10 * largest_code(width, signed))
        torch.testing.assert_close(of_input.step.grad[i], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("signed", [False, True])
def test_steps_start_from_the_weight_and_the_first_batch(signed):
    widths = (1, 2, 4, 8)
    of_weight = LSQWeight(formats(*widths), signed=True).double()
    of_input = LSQInput(formats(*widths), signed=signed).double()
    weight, x = spread_values(0.3, 40), spread_values(5.0, 60).view(6, 10)
    of_weight.prepare(weight)
    of_input.prepare(x)
    for i, width in enumerate(widths):
        weight_step, input_step = of_weight.step[i].item(), of_input.step[i].item()
        assert weight_step == pytest.approx(expected_initial_step(weight, width, True), rel=1e-12)
        assert input_step == pytest.approx(expected_initial_step(x, width, signed), rel=1e-12)


def test_steps_after_several_batches_are_those_of_all_their_values():
    quantizer = LSQInput(formats(2, 4)).double()
    batches = [spread_values(5.0, n, seed=n).view(-1, 10) for n in (60, 20, 110)]
    for batch in batches:
        quantizer.observe(batch)
    quantizer.complete()
    for i, width in enumerate((2, 4)):
        expected = expected_initial_step(torch.cat(batches), width, False)
        assert quantizer.step[i].item() == pytest.approx(expected, rel=1e-12)


def test_a_second_calibration_forgets_the_first():
    quantizer = LSQInput(formats(2, 4))
    for value in (5.0, 90.0, 4.0):
        quantizer.observe(torch.full((2, 3), value))
        quantizer.complete()
    assert torch.equal(quantizer.step, prepared().step)


def test_steps_of_an_all_zero_batch_start_at_one():
    quantizer = LSQInput(formats(1, 4))
    quantizer.prepare(torch.zeros(2, 3))
    assert quantizer.step.tolist() == [1, 1]


def prepared() -> LSQInput:
    quantizer = LSQInput(formats(2, 4))
    quantizer.prepare(torch.full((2, 3), 4.0))
    return quantizer


def reloaded(quantizer: LSQInput) -> LSQInput:
    other = LSQInput(formats(2, 4))
    other.load_state_dict(quantizer.state_dict())
    return other


@pytest.mark.parametrize(
    "copied",
    [lambda q: q, reloaded, copy.deepcopy, lambda q: pickle.loads(pickle.dumps(q))],
    ids=["itself", "state_dict", "deepcopy", "pickle"],
)
def test_steps_are_initialised_only_once(copied):
    quantizer = prepared()
    step = quantizer.step.clone()
    assert (step != 1).all()
    other = copied(quantizer)
    other.prepare(torch.full((2, 3), 90.0))
    assert torch.equal(other.step, step)


def test_steps_loaded_before_initialisation_are_initialised_afterwards():
    quantizer = prepared()
    quantizer.load_state_dict(LSQInput(formats(2, 4)).state_dict())
    quantizer.prepare(torch.full((2, 3), 4.0))
    assert torch.equal(quantizer.step, prepared().step)


def test_an_empty_first_batch_leaves_the_initialisation_to_the_next():
    quantizer = LSQInput(formats(2, 4))
    quantizer.prepare(torch.empty(0, 3))
    assert not quantizer.ready
    quantizer.prepare(torch.full((2, 3), 4.0))
    assert torch.equal(quantizer.step, prepared().step)


# Copies that are made before data arrive


def test_a_copy_made_before_the_first_batch_starts_from_the_same_steps():
    quantizer = LSQInput(formats(2, 4))
    average = copy.deepcopy(quantizer)
    quantizer.prepare(torch.full((2, 3), 4.0))
    assert torch.equal(average.step, quantizer.step)


def test_a_copy_that_sees_data_of_its_own_is_set_from_those():
    quantizer = LSQInput(formats(2, 4))
    early, late = copy.deepcopy(quantizer), copy.deepcopy(quantizer)
    early.prepare(torch.full((2, 3), 70.0))
    own = early.step.clone()
    quantizer.prepare(torch.full((2, 3), 4.0))
    assert torch.equal(early.step, own)
    late.prepare(torch.full((2, 3), 70.0))
    assert torch.equal(late.step, own)
    assert torch.equal(quantizer.step, prepared().step)


@pytest.mark.parametrize("width", [1, 2, 3, 16])
def test_all_zero_weight_and_input_have_finite_values_and_gradients(width):
    for kind, shape in ((LSQWeight, (4,)), (LSQInput, (2, 3))):
        quantizer = kind(formats(width), signed=kind is LSQWeight)
        x = torch.zeros(shape, requires_grad=True)
        quantizer.prepare(x)
        output = quantizer(x, 0)
        (100 * output.sum()).backward()
        assert all(t.isfinite().all() for t in (output, x.grad, quantizer.step.grad))


@pytest.mark.parametrize("step", [0.0, -2.0])
@pytest.mark.parametrize("signed", [False, True])
def test_a_step_driven_below_zero_still_gives_finite_values_of_the_right_sign(step, signed):
    v = spread_values(1.0, 100)
    step = step_of(step)
    quantized = lsq(v, step, 3, signed)
    quantized.sum().backward()
    assert quantized.isfinite().all()
    assert (quantized * v >= 0).all()
    assert step.grad.isfinite()


def test_every_width_has_a_step_of_its_own():
    quantizer = LSQInput(formats(2, 3, 4))
    with torch.no_grad():
        quantizer.step.copy_(torch.tensor([1.0, 10.0, 100.0]))
    x = torch.full((1, 1), 1e6)
    assert [quantizer(x, k).item() for k in range(3)] == [3, 70, 1500]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("width", [1, 3])
def test_inputs_are_left_as_they_were(width, signed):
    v, step = spread_values(1.0).requires_grad_(), step_of()
    before = v.detach().clone()
    lsq(v, step, width, signed).sum().backward()
    assert torch.equal(v, before)
    assert step == STEP
