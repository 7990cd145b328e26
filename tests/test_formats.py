"""Formats and precisions: values, how they are written, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dqnet.errors import UserError
from dqnet.formats import Format, Minifloat, Precision, as_written, distinct, parse_precisions

bits = st.integers(1, 16)


@given(weight=bits, x=bits)
def test_a_precision_is_read_back_from_its_name(weight, x):
    precision = Precision(Format(weight), Format(x))
    assert Precision.parse(str(precision)) == precision
    assert Precision.parse(precision.value) == precision
    assert Precision.parse(f"w{weight}a{x}") == precision
    assert hash(Precision.parse(precision.value)) == hash(precision)


SPLITS = [(e, m) for e in range(1, 9) for m in range(16 - e)]
names = st.one_of(
    bits.map(str), st.sampled_from([*(f"e{e}m{m}" for e, m in SPLITS if (e, m) != (5, 10))]),
    st.just("float16"),
)  # fmt: skip


@given(weight=names, x=names)
def test_small_floats_are_formats_of_weights_and_of_inputs(weight, x):
    precision = Precision.parse(f"w{weight}a{x}")
    assert (str(precision.weight), str(precision.input)) == (weight, x)
    assert Precision.parse(precision.value) == precision
    assert Precision.parse(weight) == Precision(precision.weight, precision.weight)


def test_a_small_float_is_named_by_its_bits():
    e4m3 = Format.parse("e4m3")
    assert e4m3 == Minifloat(4, 3) and hash(e4m3) == hash(Minifloat(4, 3))
    assert (e4m3.bits, e4m3.exponent, e4m3.mantissa) == (8, 4, 3)
    assert e4m3 != Format(8) and e4m3 != Minifloat(5, 2)
    assert Format.parse("float16") == Format.parse("e5m10") == Minifloat(5, 10)
    assert str(Precision.parse("we5m10ae4m3")) == "wfloat16ae4m3"
    assert Precision.parse("e4m3").label == "e4m3"
    assert Precision.parse("w4ae4m3").bit_product == 32


@pytest.mark.parametrize(
    ("name", "largest"),
    [("e4m3", 448), ("e5m2", 57344), ("e3m2", 28), ("e2m3", 7.5), ("e2m1", 6), ("e3m0", 16),
     ("float16", 65504), ("e8m7", 3.3895313892515355e38), ("e1m0", 2), ("e4m0", 128)],
)  # fmt: skip
def test_the_largest_number_is_the_published_one(name, largest):
    assert Format.parse(name).largest == largest


def test_an_integer_is_both_formats():
    assert Precision.parse(3) == Precision(Format(3), Format(3)) == Precision.parse("3")
    assert (str(Precision.parse(3)), Precision.parse(3).value) == ("3", 3)
    assert str(Precision.parse("w4a4")) == "4"
    assert str(Precision.parse("w4a8")) == Precision.parse("w4a8").value == "w4a8"


@given(weight=bits, x=bits)
def test_the_width_is_the_geometric_mean(weight, x):
    precision = Precision(Format(weight), Format(x))
    assert precision.bit_product == weight * x
    assert precision.width == pytest.approx(math.exp((math.log(weight) + math.log(x)) / 2))


@pytest.mark.parametrize(
    "widths", [(1,), (16,), (2, 3, 4), [1, 8, 16], tuple(range(1, 17)), np.array([2, 3]),
               torch.tensor([2, 3]), ("w2a4", "w4a4", "w2a8"), (2, "w2a8", "w4a4", 8)],
    ids=str,
)  # fmt: skip
def test_ascending_precisions_are_accepted(widths):
    expected = [Precision.parse(width) for width in widths]
    assert list(parse_precisions(widths)) == expected


def test_equal_costs_keep_their_order():
    for widths in (("w2a8", "w4a4"), (4, "w2a8")):
        assert as_written(parse_precisions(widths)) == (widths if widths[0] == 4 else ("w2a8", 4))


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ([], "empty"),
        (3, r"3 is not a list"),
        ("w4a8", "'w4a8' is not a list"),
        ((3, 2), r"ascending.*\(2, 3\)"),
        ((2, 2, 3), r"repeats.*\(2, 3\)"),
        ((4, "w4a4"), r"repeats.*\(4,\)"),
        (("w4a4", "w2a4"), r"ascending.*\('w2a4', 4\)"),
        ((0, 2), "0 is out of range; valid: 1 to 16"),
        ((-1,), "-1 is out of range"),
        ((17,), "17 is out of range; valid: 1 to 16"),
        ((2, 32), "32 is full precision.*quant=none"),
        (("w4a32",), "32 is out of range.*full precision"),
        ((True, 2), "True is not an integer"),
        ((2.0, 3.0), "2.0 is not an integer"),
        ((None,), "None is not an integer"),
        (("two",), "'two' is not a precision"),
        (("w4",), "'w4' is not a precision; give bits, e.g. 3, or weight and input, e.g. 'w4a8'"),
        (("w4ax",), "'x' is not a number format; valid: bits of an integer, 1 to 16"),
        (("e9m9",), "'e9m9' is not a number format; valid: .* e4m3, of 1 to 8 .* 16 in all"),
        (("e9m3",), "'e9m3' is not a number format"),
        (("e0m3",), "'e0m3' is not a number format"),
        (("w4ae8m8",), "'e8m8' is not a number format"),
        (("we4ae4m3",), "'e4' is not a number format"),
        (("float32",), "'float32' is not a precision"),
        (("e4m3", "w4a4"), r"ascending.*\(4, 'e4m3'\)"),
    ],
)
def test_other_widths_are_refused_with_what_would_be_right(widths, message):
    with pytest.raises(UserError, match=message):
        parse_precisions(widths)


def test_precisions_share_the_formats_that_they_have_in_common():
    precisions = parse_precisions(("w2a4", "w2a8", "w4a8"))
    assert distinct(p.weight for p in precisions) == ((Format(2), Format(4)), (0, 0, 1))
    assert distinct(p.input for p in precisions) == ((Format(4), Format(8)), (0, 1, 1))
