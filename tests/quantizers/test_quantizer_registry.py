"""Names of methods, and which of a layer's tensors they quantize."""

from __future__ import annotations

import pytest

from dqnet.errors import UserError
from dqnet.formats import Format
from dqnet.quantizers import Quantizer, build_quantizers, find_quantizers
from dqnet.quantizers.dorefa import DoReFaInput, DoReFaWeight
from dqnet.quantizers.lsq import LSQInput, LSQWeight
from dqnet.quantizers.pact import PACT


@pytest.mark.parametrize(
    ("method", "pair"),
    [
        ("dorefa", (DoReFaWeight, DoReFaInput)),
        ("pact", (DoReFaWeight, PACT)),
        ("lsq", (LSQWeight, LSQInput)),
        (("dorefa", "lsq"), (DoReFaWeight, LSQInput)),
        (("pact", PACT), (DoReFaWeight, PACT)),
        (PACT, (PACT, PACT)),
    ],
    ids=str,
)
def test_a_method_is_a_quantizer_of_weights_and_one_of_inputs(method, pair):
    assert find_quantizers(method) == pair


@pytest.mark.parametrize(
    ("wrong", "right"), [("dorefaa", "dorefa"), ("pakt", "pact"), ("lsqq", "lsq")]
)
def test_an_unknown_name_is_refused_with_the_nearest_one(wrong, right):
    with pytest.raises(UserError, match=f"'{wrong}'.*did you mean '{right}'"):
        find_quantizers(wrong)
    with pytest.raises(UserError, match=f"'{wrong}'.*did you mean '{right}'"):
        find_quantizers(("lsq", wrong))


def test_a_name_like_none_of_them_is_refused_with_the_valid_ones():
    with pytest.raises(UserError, match=f"valid: {', '.join(sorted(Quantizer.registry))}$"):
        find_quantizers("zzzzzz")


@pytest.mark.parametrize("wrong", [3, None, int])
def test_what_is_neither_a_name_nor_a_quantizer_is_refused(wrong):
    with pytest.raises(UserError, match=r"neither a name .* nor a subclass of Quantizer"):
        find_quantizers(wrong)


def test_a_subclass_without_a_name_is_not_registered():
    before = {name: dict(classes) for name, classes in Quantizer.registry.items()}

    class Unnamed(Quantizer):
        pass

    assert Quantizer.registry == before
    assert find_quantizers(Unnamed) == (Unnamed, Unnamed)


def test_a_method_of_weights_alone_is_refused_for_inputs():
    class WeightsAlone(Quantizer, name="weights_alone", of="weight"):
        pass

    try:
        assert find_quantizers(("weights_alone", "lsq"))[0] is WeightsAlone
        with pytest.raises(
            UserError, match="'weights_alone' is not for a layer's input; valid: affine"
        ):
            find_quantizers("weights_alone")
    finally:
        del Quantizer.registry["weights_alone"]


def build(method, options):
    formats = [Format(2)]
    return build_quantizers(method, formats, formats, signed=False, channels=4, options=options)


def test_an_option_goes_to_the_quantizer_that_takes_it():
    weight, x = build("pact", {"alpha_init": 3.0})
    assert x.alpha == 3 and not list(weight.parameters())
    assert build(("dorefa", "pact"), ({}, {"alpha_init": 2.0}))[1].alpha == 2


def test_an_option_that_no_quantizer_takes_is_refused():
    with pytest.raises(UserError, match=r"option of DoReFaWeight and PACT 'alpha'.*'alpha_init'"):
        build("pact", {"alpha": 3.0})
    with pytest.raises(UserError, match=r"option of DoReFaWeight 'alpha_init'.*none"):
        build("pact", ({"alpha_init": 3.0}, {}))


def test_an_option_of_the_wrong_type_is_refused():
    with pytest.raises(UserError, match="do not fit PACT"):
        build("pact", {"alpha_init": "high"})
