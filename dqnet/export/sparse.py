"""Sparse sequences as relative indices.

Han, Mao and Dally 2016, *Deep Compression*, https://arxiv.org/abs/1510.00149, section 2 and figure
2: of a sequence with many zeros the other values are stored, each with its distance from the one
before. A distance that g bits do not hold is bridged by filler zeros, which are stored, too.
"""

from __future__ import annotations

import numpy as np

#: a gap is a byte at most
GAP_BITS = range(9)


def entries_of(sequence: np.ndarray) -> np.ndarray:
    """How many zeros are before each of the others and behind the one before it, ``[n]``."""
    return np.diff(np.flatnonzero(sequence), prepend=-1) - 1


def count_entries(skipped: np.ndarray, gap_bits: int) -> int:
    """How many values are stored, with fillers.

    Args:
        skipped: of :func:`entries_of`.
        gap_bits: g; with 0 every zero up to the last other value is one.
    """
    return len(skipped) + int((skipped >> gap_bits).sum())


def to_gaps(sequence: np.ndarray, gap_bits: int) -> tuple[np.ndarray, np.ndarray]:
    """The sparse form of whole numbers ``[M]``.

    Args:
        sequence: what is coded.
        gap_bits: g, 0 to 8.

    Returns:
        For each value that is stored how many zeros were skipped before it, 0 to 2ᵍ − 1, and the
        values, of which fillers are 0. Zeros at the end are not stored.
    """
    skipped = entries_of(sequence)
    fillers = skipped >> gap_bits  # each bridges 2ᵍ places, its own among them
    places = np.cumsum(fillers + 1) - 1
    gaps = np.full(count_entries(skipped, gap_bits), 2**gap_bits - 1)
    gaps[places] = skipped & (2**gap_bits - 1)
    values = np.zeros(len(gaps), sequence.dtype)
    values[places] = sequence[np.flatnonzero(sequence)]
    return gaps, values


def from_gaps(gaps: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """What :func:`to_gaps` coded, ``[count]``.

    Raises:
        IndexError: if the gaps lead beyond its end.
    """
    sequence = np.zeros(count, values.dtype)
    sequence[np.cumsum(gaps + 1) - 1] = values
    return sequence
