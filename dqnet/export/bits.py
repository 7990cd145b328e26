"""Integers of a few bits each, without gaps."""

from __future__ import annotations

import numpy as np


def pack_bits(codes: np.ndarray, bits: int) -> np.ndarray:
    """Integers in ``[0, 2ᵇ)`` one after the other, the lowest bit first.

    Args:
        codes: any integers ``[M]``.
        bits: b, from 1 to 16.

    Returns:
        uint8 ``[⌈M · b / 8⌉]``; what is left of the last byte is 0.
    """
    places = np.arange(bits, dtype=np.uint16)
    each = (codes.astype(np.uint16)[:, None] >> places) & 1
    return np.packbits(each.astype(np.uint8), bitorder="little")


def unpack_bits(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """What :func:`pack_bits` packed, int32 ``[count]``."""
    each = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    return each.astype(np.int32) @ (1 << np.arange(bits, dtype=np.int32))
