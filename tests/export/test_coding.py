"""Coded sequences: read back as they were, and as small as Shannon and Huffman say."""

from __future__ import annotations

import heapq
import sys

import numpy as np
import pytest

from dqnet.errors import UserError
from dqnet.export import entropy
from dqnet.export.coding import CODINGS, Coded, check_coding, code, decoded, sparse_bits
from dqnet.export.entropy import approximate, coded_bits, counts_of
from dqnet.export.sparse import from_gaps, to_gaps

pytest.importorskip("constriction")


def sequence(count=3000, bits=4, zeros=0.8, seed=0):
    """Like weights: many zeros, and the larger the rarer."""
    rng = np.random.default_rng(seed)
    values = np.minimum(rng.geometric(0.3, count), 2**bits - 1)
    return np.where(rng.random(count) < zeros, 0, values).astype(np.int32)


def written_out(values, gap_bits):
    """Relative indices one value at a time, as the paper's figure 2 shows them."""
    gaps, kept, skipped = [], [], 0
    last = max(np.flatnonzero(values), default=-1)
    for value in values[: last + 1]:
        if value == 0 and skipped < 2**gap_bits - 1:
            skipped += 1
            continue
        gaps.append(skipped)
        kept.append(value)
        skipped = 0
    return gaps, kept


def huffman_bits(counts):
    """The bits of an optimal prefix code: the sum of all merged weights."""
    heap, total = [int(c) for c in counts if c], 0
    heapq.heapify(heap)
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    return total


def entropy_bits(counts):
    counts = counts[counts > 0]
    return -(counts * np.log2(counts / counts.sum())).sum()


def size(coded):
    return sum(part.nbytes for part in coded.parts)


@pytest.mark.parametrize("gap_bits", [0, 1, 3, 8])
@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.97])
def test_gaps_are_those_of_the_paper(gap_bits, zeros):
    values = sequence(zeros=zeros)
    gaps, kept = to_gaps(values, gap_bits)
    expected = written_out(values, gap_bits)
    assert (gaps.tolist(), kept.tolist()) == expected
    assert np.array_equal(from_gaps(gaps, kept, len(values)), values)


def test_the_papers_own_example():
    """Figure 2: a span above 8 is bridged by a filler at 3 bits."""
    values = np.zeros(16, np.int64)
    values[[1, 4, 15]] = 34, 9, 17  # times 0.1, distances 1, 3 and 11
    gaps, kept = to_gaps(values[1:], 3)
    assert kept.tolist() == [34, 9, 0, 17]
    assert (gaps[1:] + 1).tolist() == [3, 8, 3]


@pytest.mark.parametrize("coding", [c for c in CODINGS if c != "auto"])
@pytest.mark.parametrize(
    "values",
    [
        sequence(),
        sequence(bits=8, zeros=0.0),
        sequence(count=1),
        np.zeros(1000, np.int32),
        np.array([0, 0, 3, 0], np.int32),
        np.full(70, 5, np.int32),
        np.array([], np.int32),
        np.append(np.zeros(5000, np.int32), 1),
    ],
)
def test_what_is_coded_is_decoded(coding, values):
    coded = code(values, 8, coding)
    found = decoded(coded, 8, len(values))
    assert coded.coding == coding and found.dtype == np.int32
    assert np.array_equal(found, values)


def test_sixteen_bits_are_decoded():
    values = np.random.default_rng(0).integers(0, 2**16, 500)
    for coding in CODINGS:
        assert np.array_equal(decoded(code(values, 16, coding), 16, 500), values)


def test_a_gap_has_the_bits_that_are_best():
    values = sequence(20000, zeros=0.95)
    coded = code(values, 4, "sparse")
    sizes = [len(written_out(values, g)[0]) * (g + 4) for g in range(9)]
    assert coded.gap_bits == int(np.argmin(sizes))
    assert 8 * size(coded) == pytest.approx(min(sizes), abs=16)
    assert sparse_bits(values == 0, 4) == min(sizes)


def test_without_zeros_a_sparse_form_is_the_dense_one():
    values = sequence(zeros=0.0)
    coded = code(values, 4, "sparse")
    assert coded.gap_bits == 0 and size(coded) == len(values) * 4 // 8


@pytest.mark.parametrize("zeros", [0.0, 0.6, 0.95])
def test_both_sequences_are_as_small_as_theory_says(zeros):
    values = sequence(50000, zeros=zeros)
    for coding, bits_of in (("huffman", huffman_bits), ("range", entropy_bits)):
        coded = code(values, 4, coding)
        gaps, kept = to_gaps(values, coded.gap_bits)
        least = bits_of(np.bincount(gaps)) + bits_of(np.bincount(kept))
        tables = 6 * (2**coded.gap_bits + 2**4)
        assert least <= 8 * size(coded) - 8 * (coded.parts[0].nbytes + coded.parts[2].nbytes)
        assert 8 * size(coded) <= 1.006 * least + tables + 2 * 8 + 2 * 64


def test_of_several_codings_the_smallest_is_taken():
    for zeros in (0.0, 0.5, 0.95):
        values = sequence(9000, zeros=zeros)
        sizes = {c: size(code(values, 4, c)) for c in CODINGS}
        assert sizes["auto"] <= min(sizes.values()) + 8  # priced, not tried: but for whole words
        assert sizes["range"] <= sizes["huffman"] + 8


def test_counts_in_tables_are_near_and_small_ones_exact():
    counts = np.array([*range(9), 10, 12, 100, 999, 12345, 100000, 0, 10**7])
    near = counts_of(approximate(counts))
    assert np.array_equal(near == 0, counts == 0)
    ratio = near[counts > 0] / counts[counts > 0] * (counts.max() / near.max())
    assert (np.abs(np.log2(ratio[counts[counts > 0] > 100])) < 0.18).all()
    small = np.arange(8)
    assert np.array_equal(counts_of(approximate(small)), small)
    assert np.array_equal(
        counts_of(np.arange(64)), counts_of(approximate(counts_of(np.arange(64))))
    )


def test_a_price_is_what_coding_takes():
    values = sequence(30000, zeros=0.3)
    for coder in entropy.CODERS:
        table, coded = entropy.encode(values, 4, coder)
        price = coded_bits(np.bincount(values, minlength=16), 4, coder)
        assert 8 * (table.nbytes + coded.nbytes) == pytest.approx(price, abs=64)


def test_bytes_that_end_early_are_noticed():
    values = sequence()
    coded = code(values, 4, "huffman")
    short = Coded("huffman", coded.gap_bits, coded.entries, (*coded.parts[:3], coded.parts[3][:9]))
    with pytest.raises(ValueError, match="bits"):
        decoded(short, 4, len(values))


@pytest.mark.parametrize(
    ("coding", "message"),
    [
        ("hufman", "unknown coding 'hufman'; did you mean 'huffman'"),
        ("zip", "unknown coding 'zip'; valid: auto, huffman, none, range, sparse"),
    ],
)
def test_an_unknown_coding_is_one_line(coding, message):
    with pytest.raises(UserError, match=message):
        check_coding(coding)


def test_a_missing_library_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "constriction", None)
    check_coding("none")
    check_coding("sparse")
    for coding in ("huffman", "range", "auto"):
        with pytest.raises(UserError, match=r"pip install dqnet\[compression\]"):
            check_coding(coding)
