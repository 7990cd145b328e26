"""Names of number formats, and the widths they accept."""

from __future__ import annotations

import pytest

from dqnet.errors import UserError
from dqnet.quantizers import DoReFa, Quantizer, check_widths, find_quantizer


@pytest.mark.parametrize("name", ["dorefa", "pact", "lsq"])
def test_a_published_quantizer_is_found_by_its_papers_name(name):
    quantizer = find_quantizer(name)
    assert quantizer.__name__.lower() == name
    assert quantizer((2, 3)).widths == (2, 3)


def test_a_class_is_its_own_name():
    assert find_quantizer(DoReFa) is DoReFa


@pytest.mark.parametrize(
    ("wrong", "right"), [("dorefaa", "dorefa"), ("pakt", "pact"), ("lsqq", "lsq")]
)
def test_an_unknown_name_is_refused_with_the_nearest_one(wrong, right):
    with pytest.raises(UserError, match=f"'{wrong}'.*did you mean '{right}'"):
        find_quantizer(wrong)


def test_a_name_like_none_of_them_is_refused_with_the_valid_ones():
    with pytest.raises(UserError, match="dorefa, lsq, pact"):
        find_quantizer("zzzzzz")


def test_a_subclass_without_a_name_is_not_registered():
    before = dict(Quantizer.registry)

    class Unnamed(Quantizer):
        pass

    assert Quantizer.registry == before
    assert find_quantizer(Unnamed) is Unnamed


@pytest.mark.parametrize("widths", [(1,), (16,), (2, 3, 4), [1, 8, 16], tuple(range(1, 17))])
def test_ascending_widths_from_1_to_16_are_accepted(widths):
    assert check_widths(widths) == tuple(widths)


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ([], "empty"),
        ((3, 2), r"ascending.*\(2, 3\)"),
        ((2, 2, 3), r"repeats.*\(2, 3\)"),
        ((0, 2), "0 is out of range; valid: 1 to 16"),
        ((-1,), "-1 is out of range"),
        ((17,), "17 is out of range; valid: 1 to 16"),
        ((2, 32), "32 is full precision.*quant=none"),
        ((True, 2), "True is not an integer"),
        ((2.0, 3.0), "2.0 is not an integer"),
        (("2",), "'2' is not an integer"),
    ],
)
def test_other_widths_are_refused_with_what_would_be_right(widths, message):
    with pytest.raises(UserError, match=message):
        check_widths(widths)
    with pytest.raises(UserError, match=message):
        DoReFa(widths)
