"""Not a number, infinity, huge, subnormal and half-precision values: never a silent wrong one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from formats import assert_levels, even_levels, lsq_levels, nearest
from hypothesis import given, settings
from hypothesis import strategies as st

from dqnet.errors import UserError
from dqnet.formats import Format
from dqnet.quantizers import Quantizer, build_quantizers
from dqnet.quantizers.lsq import LSQInput

QUANTIZERS = ("dorefa", "pact", "lsq")
ALPHA, STEP = 0.9, 0.37
#: any float32 at all
values = st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True)
formats = {
    "name": st.sampled_from(QUANTIZERS),
    "width": st.integers(1, 16),
    "signed": st.booleans(),
}


def quantizers_of(name: str, width: int, signed: bool) -> tuple[Quantizer, Quantizer]:
    """Of a weight and of an input."""
    options = {"alpha_init": ALPHA} if name == "pact" else None
    formats = [Format(width)]
    pair = build_quantizers(name, formats, formats, signed=signed, channels=1, options=options)
    if name == "lsq":
        with torch.no_grad():
            for quantizer in pair:
                quantizer.step.fill_(STEP)
    return pair


def input_quantizer_of(name: str, width: int, signed: bool) -> Quantizer:
    return quantizers_of(name, width, signed)[1]


def weight_quantizer_of(name: str, width: int) -> Quantizer:
    return quantizers_of(name, width, False)[0]


def levels_of(name: str, width: int, signed: bool) -> np.ndarray:
    if name == "lsq":
        return lsq_levels(STEP, width, signed)
    top = ALPHA if name == "pact" else 1.0
    return even_levels(-top if signed else 0.0, top, width)


@settings(max_examples=150, deadline=None)
@given(x=st.lists(values, min_size=1, max_size=8), **formats)
def test_input_is_the_nearest_level_and_nan_stays_nan(x, name, width, signed):
    x = torch.tensor(x)
    quantized = input_quantizer_of(name, width, signed)(x[None], 0)[0]
    assert torch.equal(quantized.isnan(), x.isnan())
    real = ~x.isnan()
    levels = levels_of(name, width, signed)
    clipped = x[real].double().clamp(levels[0], levels[-1]).numpy()
    got = quantized[real].detach().double().numpy()
    distance = np.abs(nearest(clipped, levels) - clipped)
    # As near as the nearest one: exactly between two levels, float32 may take either.
    slack = 1e-6 * np.abs(levels).max()
    assert (np.abs(got - clipped) <= distance + slack).all()
    assert (np.abs(got - nearest(got, levels)) <= slack).all()


@settings(max_examples=150, deadline=None)
@given(x=st.lists(values, min_size=1, max_size=8), **formats)
def test_codes_times_their_scale_are_the_input_itself(x, name, width, signed):
    """The layer's fast form: in place, and as codes that the weight is scaled by."""
    x = torch.tensor(x)[None]
    quantizer = input_quantizer_of(name, width, signed)
    codes = x.clone()
    scale = quantizer.codes_into(codes, 0, codes)
    expected = quantizer(x, 0)
    torch.testing.assert_close(codes * scale, expected, rtol=0, atol=0, equal_nan=True)


@settings(max_examples=100, deadline=None)
@given(x=st.lists(values, min_size=1, max_size=8), **formats)
def test_gradient_of_an_element_does_not_depend_on_the_others(x, name, width, signed):
    x = torch.tensor(x)[None].requires_grad_()
    quantizer = input_quantizer_of(name, width, signed)
    quantizer(x, 0).backward(torch.ones_like(x))
    for i in range(x.shape[1]):
        alone = x.detach()[:, i : i + 1].clone().requires_grad_()
        quantizer(alone, 0).backward(torch.ones(1, 1))
        assert alone.grad.item() in (0, 1)
        assert x.grad[0, i] == alone.grad.item()


# Weights


@settings(max_examples=100, deadline=None)
@given(
    weight=st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=True), min_size=1, max_size=8
    ),
    width=st.integers(2, 16),
)
def test_dorefa_weight_is_the_nearest_level_at_every_magnitude(weight, width):
    weight = torch.tensor(weight)
    squashed = np.tanh(weight.double().numpy())
    largest = np.abs(squashed).max()
    normal = squashed / largest if largest else squashed
    levels = even_levels(-1.0, 1.0, width)
    got = weight_quantizer_of("dorefa", width)(weight, 0).double().numpy()
    distance = np.abs(nearest(normal, levels) - normal)
    # A subnormal has few digits, which its ratio to another one inherits.
    slack = 1e-6 + (1e-45 / largest if largest else 0)
    assert (np.abs(got - normal) <= distance + slack).all()
    assert (np.abs(got - nearest(got, levels)) <= 1e-6).all()


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("width", [1, 2, 8])
def test_nan_in_a_weight_is_seen(name, width):
    weight = torch.tensor([0.5, math.nan, -0.25])
    quantized = weight_quantizer_of(name, width)(weight, 0)
    if name == "lsq":  # element by element
        assert quantized.isnan().tolist() == [False, True, False]
    else:  # the mean, or the largest, of all elements is unknown
        assert quantized.isnan().all()


@pytest.mark.parametrize("magnitude", [1e-37, 1e-30, 1e-20, 1e-3, 1.0])
def test_dorefa_weight_gradient_at_every_magnitude(magnitude):
    """Against float64, where nothing underflows."""
    weight = (magnitude * torch.tensor([0.9, -0.5, 0.2, 0.7])).requires_grad_()
    upstream = torch.tensor([1.0, 2.0, -3.0, 0.5])
    double = weight.detach().double().requires_grad_()
    weight_quantizer_of("dorefa", 3)(weight, 0).backward(upstream)
    weight_quantizer_of("dorefa", 3)(double, 0).backward(upstream.double())
    torch.testing.assert_close(weight.grad, double.grad.float(), rtol=1e-4, atol=0)


# LSQ's first batch


def first_step(x: torch.Tensor, width: int) -> torch.Tensor:
    quantizer = LSQInput([Format(width)])
    quantizer.prepare(x)
    return quantizer.step


def test_initial_step_is_that_of_the_finite_elements():
    finite = torch.tensor([0.5, -2.0, 1.0])
    mixed = torch.tensor([0.5, math.nan, -2.0, math.inf, 1.0, -math.inf])
    assert first_step(mixed, 4) == first_step(finite, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_initial_step_of_the_largest_values_is_finite(dtype):
    largest = torch.full((3, 4), torch.finfo(dtype).max, dtype=dtype)
    formats = [Format(1), Format(4)]
    for quantizer in build_quantizers("lsq", formats, formats, signed=False, channels=3):
        quantizer.to(dtype).prepare(largest)
        assert quantizer.step.isfinite().all()
        assert not quantizer(largest, 1).isnan().any()


@pytest.mark.parametrize("first", [torch.full((2, 3), math.nan), torch.empty(0, 3)])
def test_a_batch_without_a_finite_value_initialises_nothing(first):
    quantizer, second = LSQInput([Format(2)]), torch.full((2, 3), 4.0)
    quantizer.prepare(first)
    assert not quantizer.ready
    quantizer.prepare(second)
    assert quantizer.step == first_step(second, 2)


def quantizers_of_pact(alpha: float) -> tuple[Quantizer, Quantizer]:
    formats, options = [Format(2)], {"alpha_init": alpha}
    return build_quantizers("pact", formats, formats, signed=False, channels=1, options=options)


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan, math.inf])
def test_a_clipping_value_that_is_no_scale_is_refused(alpha):
    with pytest.raises(UserError, match=r"alpha_init .* must be above 0 and finite"):
        quantizers_of_pact(alpha)


# Half precision


@settings(max_examples=100, deadline=None)
@given(
    x=st.lists(values, min_size=1, max_size=8),
    dtype=st.sampled_from([torch.float16, torch.bfloat16]),
    **formats,
)
def test_half_precision_is_float32_rounded_once(x, dtype, name, width, signed):
    """Beyond 65504, float16 holds infinity: it clips as any large value does."""
    x = torch.tensor(x)[None].to(dtype)
    pairs = zip(quantizers_of(name, width, signed), quantizers_of(name, width, signed), strict=True)
    for half, wide in pairs:
        half.to(dtype)
        wide.load_state_dict(half.state_dict())
        got = half(x, 0)
        assert got.dtype == dtype
        expected = wide(x.float(), 0).to(dtype)
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gradients_have_their_leafs_type(name, dtype):
    of_weight, of_input = (q.to(dtype) for q in quantizers_of(name, 16, False))
    x = torch.linspace(-1, 2, 10, dtype=dtype)[None].requires_grad_()
    weight = torch.linspace(-1, 1, 6, dtype=dtype).requires_grad_()
    (of_input(x, 0).sum() + of_weight(weight, 0).sum()).backward()
    leaves = [x, weight, *of_weight.parameters(), *of_input.parameters()]
    assert all(leaf.grad.dtype == dtype and leaf.grad.isfinite().all() for leaf in leaves)


def test_sixteen_bits_fit_into_half_precision():
    """65,535 levels do not: codes are float32."""
    ones = torch.ones(1, 3, dtype=torch.float16)
    quantized = input_quantizer_of("dorefa", 16, False)(ones, 0)
    assert_levels(quantized.double(), np.ones((1, 3)))
