"""Integer codes are what the forward pass computes, in no more codes than the format has."""

from __future__ import annotations

import pytest
import torch
from formats import ALL_WIDTHS, spread_values

from dqnet.errors import UserError
from dqnet.formats import Format
from dqnet.quantizers import Quantizer, build_quantizers


@pytest.mark.parametrize(
    "name", ["dorefa", "pact", "lsq", "lsq_plus", "affine", "symmetric", "fixed_point", "qnn"]
)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("width", ALL_WIDTHS)
def test_codes_and_their_scale_are_the_quantized_tensor(name, signed, width):
    if name in ("affine", "symmetric", "fixed_point") and width == 1:
        pytest.skip("it has at least two bits")
    options = {"alpha_init": 0.9} if name == "pact" else None
    formats = [Format(8), Format(width)] if width != 8 else [Format(3), Format(8)]
    pair = build_quantizers(name, formats, formats, signed=signed, channels=20, options=options)
    for quantizer in pair:
        quantizer.double()
        x = spread_values(1.0, 2000).view(20, 100)
        quantizer.prepare(x)
        codes = quantizer.encode(x, 1)
        expected = quantizer(x, 1)
        assert codes.codes.dtype == torch.int32 and codes.codes.shape == x.shape
        torch.testing.assert_close(codes.values().double(), expected.detach(), rtol=1e-6, atol=1e-7)
        assert len(codes.codes.unique()) <= 2**width
        assert codes.codes.max() - codes.codes.min() < 2**width
        assert (codes.scale > 0).all()


def test_a_method_without_codes_says_so():
    with pytest.raises(UserError, match="Quantizer does not say what its integer codes are"):
        Quantizer([Format(2)]).encode(torch.zeros(2), 0)
