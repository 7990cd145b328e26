"""How the codes of a weight are written in a file: all of them, or those that are not zero.

Han, Mao and Dally 2016, *Deep Compression*, https://arxiv.org/abs/1510.00149, sections 2 and 4: the
sparse form has two sequences, gaps and values; either may be Huffman coded. Range coding is this
package's addition.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dqnet.errors import unknown_name
from dqnet.export.entropy import coded_bits, decode, encode, load_constriction
from dqnet.export.sparse import GAP_BITS, count_entries, entries_of, from_gaps, to_gaps

#: name → how either sequence is written
CODERS = {"sparse": "bits", "huffman": "huffman", "range": "range"}
#: of every weight that which is smallest
AUTO = "auto"
CODINGS = ("none", *CODERS, AUTO)


@dataclass(frozen=True, eq=False)
class Coded:
    """The codes of a weight.

    Attributes:
        coding: one of :data:`CODINGS` but ``auto``.
        gap_bits: g; with 0 there are no gaps.
        entries: how many values are stored, with fillers.
        parts: uint8 each: table and content of the gaps, table and content of the values. Of
            ``none`` they are all in the last one, zeros among them.
    """

    coding: str
    gap_bits: int
    entries: int
    parts: tuple[np.ndarray, ...]


def check_coding(coding: str) -> None:
    """Refuses early what :func:`code` would.

    Raises:
        UserError: if there is no such coding, or ``constriction`` is needed and not installed.
    """
    if coding not in CODINGS:
        raise unknown_name("coding", coding, CODINGS)
    if coding not in ("none", "sparse"):
        load_constriction()


def code(sequence: np.ndarray, bits: int, coding: str) -> Coded:
    """Codes ``[M]`` in ``[0, 2ᵇ)``, of which 0 stands for the number zero.

    The bits of a gap are those with which the weight is smallest.

    Args:
        sequence: the codes.
        bits: b, 1 to 16.
        coding: one of :data:`CODINGS`.

    Raises:
        UserError: if ``constriction`` is needed and not installed.
    """
    if coding == AUTO:
        coding = _smallest(sequence, bits)
    if coding == "none":
        nothing = np.zeros(0, np.uint8)
        dense = encode(sequence, bits, "bits")
        return Coded(coding, 0, len(sequence), (nothing, nothing, *dense))
    coder = CODERS[coding]
    gap_bits, _ = least_bits(sequence, bits, _bits_with(coder))
    gaps, values = to_gaps(sequence, gap_bits)
    parts = (*encode(gaps, gap_bits, coder), *encode(values, bits, coder))
    return Coded(coding, gap_bits, len(values), parts)


def decoded(coded: Coded, bits: int, count: int) -> np.ndarray:
    """What :func:`code` coded, int32 ``[count]``.

    Raises:
        ValueError, IndexError: if this is not what a weight was coded as; not every damage is
            noticed.
        UserError: if ``constriction`` is needed and not installed.
    """
    gap_table, gaps, table, values = coded.parts
    if coded.coding == "none":
        return decode(table, values, bits, count, "bits")
    coder = CODERS[coded.coding]
    skipped = decode(gap_table, gaps, coded.gap_bits, coded.entries, coder)
    return from_gaps(skipped, decode(table, values, bits, coded.entries, coder), count)


#: bits of a sequence, from how often its numbers occur and the bits that each would have
Pricing = Callable[[np.ndarray, int], float]


def least_bits(sequence: np.ndarray, bits: int, price: Pricing) -> tuple[int, float]:
    """The bits of a gap with which the sparse form is smallest, and how many bits it has then."""
    skipped, values = entries_of(sequence), np.bincount(sequence, minlength=2**bits)
    values[0] = 0
    sizes = {g: _sparse_bits(skipped, values, g, bits, price) for g in GAP_BITS}
    best = min(sizes, key=sizes.__getitem__)
    return best, sizes[best]


def _sparse_bits(
    skipped: np.ndarray, values: np.ndarray, gap_bits: int, bits: int, price: Pricing
) -> float:
    fillers = count_entries(skipped, gap_bits) - len(skipped)
    gaps = np.bincount(skipped & (2**gap_bits - 1), minlength=2**gap_bits)
    gaps[-1] += fillers
    values = values.copy()
    values[0] = fillers
    return price(gaps, gap_bits) + price(values, bits)


def _bits_with(coder: str) -> Pricing:
    return lambda counts, bits: coded_bits(counts, bits, coder)


def _smallest(sequence: np.ndarray, bits: int) -> str:
    sizes = {"none": float(len(sequence) * bits)}
    for coding, coder in CODERS.items():
        sizes[coding] = least_bits(sequence, bits, _bits_with(coder))[1]
    return min(sizes, key=sizes.__getitem__)


def sparse_bits(zeros: np.ndarray, bits: int) -> float:
    """Bits of the sparse form of numbers of ``bits`` bits each, of which some are zero.

    Args:
        zeros: bool ``[M]``, which ones are.
        bits: of a number, a filler among them.
    """
    skipped = entries_of(~zeros)
    return min(count_entries(skipped, g) * (g + bits) for g in GAP_BITS)
