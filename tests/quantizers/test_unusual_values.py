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
from dqnet.quantizers import DoReFa, Quantizer, build_quantizer
from dqnet.quantizers.lsq import initial_step

QUANTIZERS = ("dorefa", "pact", "lsq")
ALPHA, STEP = 0.9, 0.37
#: any float32 at all
values = st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True)
formats = {
    "name": st.sampled_from(QUANTIZERS),
    "width": st.integers(1, 16),
    "signed": st.booleans(),
}


def quantizer_of(name: str, width: int, signed: bool) -> Quantizer:
    options = {"alpha_init": ALPHA} if name == "pact" else None
    quantizer = build_quantizer(name, (width,), signed, options)
    if name == "lsq":
        with torch.no_grad():
            quantizer.input_step.fill_(STEP)
            quantizer.weight_step.fill_(STEP)
    return quantizer


def levels_of(name: str, width: int, signed: bool) -> np.ndarray:
    if name == "lsq":
        return lsq_levels(STEP, width, signed)
    top = ALPHA if name == "pact" else 1.0
    return even_levels(-top if signed else 0.0, top, width)


@settings(max_examples=150, deadline=None)
@given(x=st.lists(values, min_size=1, max_size=8), **formats)
def test_input_is_the_nearest_level_and_nan_stays_nan(x, name, width, signed):
    x = torch.tensor(x)
    quantized = quantizer_of(name, width, signed).quantize_input(x[None], width)[0]
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
    quantizer = quantizer_of(name, width, signed)
    codes = x.clone()
    scale = quantizer.codes_into(codes, width, codes)
    expected = quantizer.quantize_input(x, width)
    torch.testing.assert_close(codes * scale, expected, rtol=0, atol=0, equal_nan=True)


@settings(max_examples=100, deadline=None)
@given(x=st.lists(values, min_size=1, max_size=8), **formats)
def test_gradient_of_an_element_does_not_depend_on_the_others(x, name, width, signed):
    x = torch.tensor(x)[None].requires_grad_()
    quantizer = quantizer_of(name, width, signed)
    quantizer.quantize_input(x, width).backward(torch.ones_like(x))
    for i in range(x.shape[1]):
        alone = x.detach()[:, i : i + 1].clone().requires_grad_()
        quantizer.quantize_input(alone, width).backward(torch.ones(1, 1))
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
    got = DoReFa((width,)).quantize_weight(weight)[0].double().numpy()
    distance = np.abs(nearest(normal, levels) - normal)
    # A subnormal has few digits, which its ratio to another one inherits.
    slack = 1e-6 + (1e-45 / largest if largest else 0)
    assert (np.abs(got - normal) <= distance + slack).all()
    assert (np.abs(got - nearest(got, levels)) <= 1e-6).all()


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("width", [1, 2, 8])
def test_nan_in_a_weight_is_seen(name, width):
    weight = torch.tensor([0.5, math.nan, -0.25])
    (quantized,) = quantizer_of(name, width, False).quantize_weight(weight)
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
    DoReFa((3,)).quantize_weight(weight)[0].backward(upstream)
    DoReFa((3,)).quantize_weight(double)[0].backward(upstream.double())
    torch.testing.assert_close(weight.grad, double.grad.float(), rtol=1e-4, atol=0)


# LSQ's first batch


def test_initial_step_is_that_of_the_finite_elements():
    finite = torch.tensor([0.5, -2.0, 1.0])
    mixed = torch.tensor([0.5, math.nan, -2.0, math.inf, 1.0, -math.inf])
    assert initial_step(mixed, 4, False) == initial_step(finite, 4, False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_initial_step_of_the_largest_values_is_finite(dtype):
    largest = torch.full((3, 4), torch.finfo(dtype).max, dtype=dtype)
    quantizer = build_quantizer("lsq", (1, 4), False, None).to(dtype)
    quantizer.prepare(largest, largest)
    assert quantizer.input_step.isfinite().all()
    assert quantizer.weight_step.isfinite().all()
    assert not quantizer.quantize_input(largest, 4).isnan().any()


@pytest.mark.parametrize("first", [torch.full((2, 3), math.nan), torch.empty(0, 3)])
def test_a_batch_without_a_finite_value_initialises_nothing(first):
    quantizer = build_quantizer("lsq", (2,), False, None)
    weight, second = torch.tensor([0.75]), torch.full((2, 3), 4.0)
    quantizer.prepare(weight, first)
    assert not quantizer.initialized
    quantizer.prepare(weight, second)
    assert quantizer.input_step == initial_step(second, 2, False)


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan, math.inf])
def test_a_clipping_value_that_is_no_scale_is_refused(alpha):
    with pytest.raises(UserError, match=r"alpha_init .* must be above 0 and finite"):
        build_quantizer("pact", (2,), False, {"alpha_init": alpha})


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
    half = quantizer_of(name, width, signed).to(dtype)
    wide = quantizer_of(name, width, signed)
    wide.load_state_dict(half.state_dict())
    got = half.quantize_input(x, width)
    assert got.dtype == dtype
    expected = wide.quantize_input(x.float(), width).to(dtype)
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
    (weight,) = half.quantize_weight(x)
    assert weight.dtype == dtype
    expected = wide.quantize_weight(x.float())[0].to(dtype)
    torch.testing.assert_close(weight, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gradients_have_their_leafs_type(name, dtype):
    quantizer = quantizer_of(name, 16, False).to(dtype)
    x = torch.linspace(-1, 2, 10, dtype=dtype)[None].requires_grad_()
    weight = torch.linspace(-1, 1, 6, dtype=dtype).requires_grad_()
    (quantizer.quantize_input(x, 16).sum() + quantizer.quantize_weight(weight)[0].sum()).backward()
    leaves = [x, weight, *quantizer.parameters()]
    assert all(leaf.grad.dtype == dtype and leaf.grad.isfinite().all() for leaf in leaves)


def test_sixteen_bits_fit_into_half_precision():
    """65,535 levels do not: codes are float32."""
    quantized = DoReFa((16,)).quantize_input(torch.ones(1, 3, dtype=torch.float16), 16)
    assert_levels(quantized.double(), np.ones((1, 3)))
