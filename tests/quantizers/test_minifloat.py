"""Small floats against the casts of PyTorch and of ml_dtypes, and against decoded bits."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from dqnet.errors import UserError
from dqnet.formats import Format, Minifloat
from dqnet.quantizers.lsq import LSQWeight
from dqnet.quantizers.minifloat import (
    MinifloatInput,
    MinifloatWeight,
    minifloat_codes,
    minifloat_table,
    round_to_minifloat,
)

#: what casts to a format of that name without saturating, and how many codes of each sign it has
PUBLISHED = {
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e2m1": ml_dtypes.float4_e2m1fn,
    "float16": np.float16,
    "e8m7": ml_dtypes.bfloat16,
}
TORCH = {
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
    "float16": torch.float16,
    "e8m7": torch.bfloat16,
}
OTHERS = ["e1m0", "e1m4", "e3m0", "e3m4", "e4m0", "e4m7", "e5m0", "e6m3", "e7m8", "e8m0"]


def decoded(name):
    """Every number of a format, ascending, from its bits by the textbook formula."""
    own = Format.parse(name)
    bias = 2 ** (own.exponent - 1) - 1
    positive = []
    for code in range(2 ** (own.bits - 1)):
        e, m = divmod(code, 2**own.mantissa)
        if own.exponent >= 5 and e == 2**own.exponent - 1:
            continue  # infinity and NaN
        if own.exponent == 4 and code == 2 ** (own.bits - 1) - 1:
            continue  # NaN
        fraction = m / 2**own.mantissa
        positive.append((fraction + (e > 0)) * 2.0 ** (max(e, 1) - bias))
    return np.array(positive)


def all_values_and_midpoints(name):
    """The numbers, what lies halfway between two, and the nearest float64 on either side of it."""
    positive = decoded(name)
    middle = (positive[1:] + positive[:-1]) / 2
    x = np.concatenate([positive, middle, np.nextafter(middle, 0), np.nextafter(middle, np.inf)])
    return np.concatenate([x, -x])


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_code_is_the_published_number(name):
    own = Format.parse(name)
    codes = np.arange(2**own.bits)
    theirs = codes.astype(np.uint8 if own.bits <= 8 else np.uint16).view(PUBLISHED[name])
    with np.errstate(invalid="ignore"):
        theirs = theirs.astype(np.float64)
    mine = minifloat_table(own).numpy().copy()
    mine[np.isinf(theirs)] = theirs[np.isinf(theirs)]
    np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("name", PUBLISHED)
def test_values_and_midpoints_are_rounded_as_published(name):
    x = all_values_and_midpoints(name)
    with np.errstate(over="ignore"):
        single = x.astype(np.float32)  # theirs casts from float64 by way of float32
        expected = single.astype(PUBLISHED[name]).astype(np.float32)
    mine = round_to_minifloat(torch.from_numpy(single), Format.parse(name)).numpy()
    np.testing.assert_array_equal(mine, expected)
    np.testing.assert_array_equal(np.signbit(mine), np.signbit(expected))


@pytest.mark.parametrize("name", TORCH)
def test_random_values_are_pytorchs_cast(name):
    own = Format.parse(name)
    generator = torch.Generator().manual_seed(0)
    powers = torch.randint(own.least_exponent - 12, 9, (20000,), generator=generator)
    x = torch.randn(20000, generator=generator) * 2.0 ** powers.double()
    x = x.clamp(-own.largest, own.largest).float()
    assert torch.equal(round_to_minifloat(x, own), x.to(TORCH[name]).float())


@pytest.mark.parametrize("name", [*PUBLISHED, *OTHERS])
def test_any_split_is_the_nearest_number_and_of_two_the_even_one(name):
    """Without a mantissa all but zero are odd: then the larger one (IEEE 754-2019, 4.3.1)."""
    own, positive = Format.parse(name), decoded(name)
    x = all_values_and_midpoints(name)
    below = (np.searchsorted(positive, np.abs(x), "right") - 1).clip(0, len(positive) - 2)
    down, up = np.abs(x) - positive[below], positive[below + 1] - np.abs(x)
    odd = below > 0 if own.mantissa == 0 else below % 2 == 1
    code = np.where((down > up) | ((down == up) & odd), below + 1, below)
    expected = np.copysign(positive[code], x)
    mine = round_to_minifloat(torch.from_numpy(x), own)
    np.testing.assert_array_equal(mine.numpy(), expected)
    codes = minifloat_codes(mine, own)
    assert torch.equal(minifloat_table(own)[codes], mine)
    np.testing.assert_array_equal(codes, code + 2 ** (own.bits - 1) * np.signbit(x))


@pytest.mark.parametrize("name", ["e4m3", "e2m1", "float16"])
def test_larger_values_saturate_and_nan_stays(name):
    own = Format.parse(name)
    x = torch.tensor([own.largest * 1.5, -1e30, float("inf"), -float("inf"), float("nan"), 0.0])
    y = round_to_minifloat(x, own)
    top = own.largest
    assert y[:4].tolist() == [top, -top, top, -top]
    assert y[4].isnan() and y[5] == 0


def weights():
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    return weight * torch.logspace(-3, 2, 6).view(-1, 1, 1, 1)


@pytest.mark.parametrize("name", ["e4m3", "e5m2", "e2m1"])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "block"])
def test_weights_are_scaled_by_the_largest_magnitude(name, granularity):
    own, weight = Format.parse(name), weights()
    quantizer = MinifloatWeight([own], channels=6, granularity=granularity, block=32)
    flat = weight.double().flatten()
    rows = {
        "per_tensor": [flat],
        "per_channel": list(weight.double().flatten(1)),
        "block": flat.split(32),  # the last one is shorter
    }[granularity]
    expected = []
    for row in rows:
        scale = float(row.abs().max()) / own.largest
        cast = (row.numpy() / scale).astype(np.float32).astype(PUBLISHED[name])
        expected.append(cast.astype(np.float64) * scale)
    actual = quantizer(weight, 0)
    np.testing.assert_allclose(actual.flatten(), np.concatenate(expected), rtol=1e-6)
    codes = quantizer.encode(weight, 0)
    assert torch.equal(codes.values(), actual)
    assert codes.scale.numel() == len(rows)


def test_without_a_scale_weights_are_cast():
    weight = weights()
    quantizer = MinifloatWeight([Minifloat(4, 3)], channels=6, scaling="none")
    expected = weight.clamp(-448, 448).to(torch.float8_e4m3fn).float()
    assert torch.equal(quantizer(weight, 0), expected)
    assert torch.equal(quantizer.encode(weight, 0).values(), expected)


def test_the_gradient_goes_straight_through():
    weight = weights().requires_grad_()
    upstream = torch.randn_like(weight)
    MinifloatWeight([Minifloat(2, 1)], channels=6)(weight, 0).backward(upstream)
    assert torch.equal(weight.grad, upstream)

    quantizer = MinifloatInput([Minifloat(2, 1)])
    quantizer.prepare(torch.tensor([[6.0, -1.0]]))  # a scale of 1
    x = torch.tensor([0.3, 6.9, 7.1, -7.1, -5.0]).requires_grad_()
    y = quantizer(x, 0)
    assert y.tolist() == [0.5, 6.0, 6.0, -6.0, -4.0]  # -5 is halfway; -4 has the even code
    y.sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 0.0, 0.0, 1.0]


def test_inputs_are_scaled_by_what_was_observed_and_follow_training():
    quantizer = MinifloatInput([Minifloat(4, 3), Minifloat(2, 1)], momentum=0.9)
    assert not quantizer.ready
    quantizer.observe(torch.tensor([[1.0, -14.0]]))
    quantizer.observe(torch.tensor([[float("nan"), 2.0]]))
    quantizer.complete()
    assert quantizer.top == 14
    x = torch.linspace(-20, 20, 999)
    scale = 14 / 448
    expected = (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale
    assert torch.equal(quantizer(x, 0), expected)
    assert torch.equal(quantizer.encode(x, 0).values(), expected)
    assert quantizer(x, 1).abs().max() == 14
    quantizer.follow(torch.tensor([[4.0]]))
    assert quantizer.top.item() == pytest.approx(13.0)
    unscaled = MinifloatInput([Minifloat(4, 3)], scaling="none")
    unscaled.prepare(x)
    assert torch.equal(unscaled(x, 0), x.to(torch.float8_e4m3fn).float())


@pytest.mark.parametrize("value", [0.0, 1e-44])
def test_a_weight_without_a_range_is_not_divided_by_zero(value):
    weight = torch.full((2, 3), value)
    assert MinifloatWeight([Minifloat(4, 3)], channels=2)(weight, 0).abs().max() <= value


def test_half_precision_is_computed_in_single():
    weight = weights()
    quantizer = MinifloatWeight([Minifloat(4, 3)], channels=6)
    y = quantizer(weight.bfloat16(), 0)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, quantizer(weight.bfloat16().float(), 0).bfloat16())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LSQWeight([Minifloat(4, 3)]), "LSQWeight writes integers such as 4, not e4m3"),
        (lambda: MinifloatWeight([Format(4)]), "writes small floats such as e4m3, not 4"),
        (lambda: MinifloatInput([Format(8)]), "writes small floats such as e4m3, not 8"),
        (lambda: MinifloatWeight([Minifloat(4, 3)], granularity="tensor"), "'tensor'.*per_tensor"),
        (lambda: MinifloatWeight([Minifloat(4, 3)], scaling="max"), "scaling 'max'.*absmax"),
        (lambda: MinifloatWeight([Minifloat(4, 3)], block=0), "block 0 must be"),
        (lambda: MinifloatInput([Minifloat(4, 3)], granularity="block"), "block is of weights"),
        (lambda: MinifloatInput([Minifloat(4, 3)], momentum=1.0), "momentum 1.0"),
    ],
)
def test_bad_input_is_one_line(make, message):
    with pytest.raises(UserError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)
