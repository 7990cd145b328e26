"""Bits without gaps, against Python's integers."""

from __future__ import annotations

import numpy as np
import pytest

from dqnet.export.bits import pack_bits, unpack_bits


@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("count", [1, 7, 8, 1001])
def test_codes_stand_one_after_the_other(bits, count):
    codes = np.random.default_rng(0).integers(0, 2**bits, count)
    codes[0] = 2**bits - 1
    packed = pack_bits(codes, bits)
    assert packed.dtype == np.uint8 and len(packed) == -(-count * bits // 8)
    number = sum(int(code) << (bits * i) for i, code in enumerate(codes))
    assert int.from_bytes(packed.tobytes(), "little") == number
    np.testing.assert_array_equal(unpack_bits(packed, bits, count), codes)
