"""Entropy coding of whole numbers by how often each occurs; ``constriction`` does the work.

Huffman 1952, and range coding (Martin 1979), which spends fractions of a bit. A sequence is coded
with a table of its own: 6 bits for each number that could occur, a count with two binary digits
behind the leading one, as only ratios matter. So tables are whole numbers and mean the same on
every machine, and cost next to nothing in coding: below 0.01 bits a number.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import numpy as np

from dqnet.errors import UserError
from dqnet.export.bits import pack_bits, unpack_bits

#: how the numbers of a sequence are written: at a fixed number of bits, or by their frequency
CODERS = ("bits", "huffman", "range")
#: of a count in a table
TABLE_BITS = 6
#: the largest count that a table holds
_LARGEST = 7 << 14


def load_constriction() -> ModuleType:
    """The library.

    Raises:
        UserError: if it is not installed.
    """
    try:
        return importlib.import_module("constriction")
    except ImportError as error:
        raise UserError("constriction is not installed: pip install dqnet[compression]") from error


def approximate(counts: np.ndarray) -> np.ndarray:
    """Counts as codes of 6 bits; 0 is 0, and nothing else is."""
    counts = counts.astype(np.float64)
    if counts.max(initial=0) > _LARGEST:
        counts = np.where(counts > 0, np.maximum(counts * (_LARGEST / counts.max()), 1), 0)
    shift = np.maximum(np.frexp(counts)[1] - 3, 0)
    return (np.rint(counts / 2.0**shift).astype(np.int64) + 4 * shift).astype(np.int32)


def counts_of(table: np.ndarray) -> np.ndarray:
    """The counts that codes of 6 bits stand for, int64."""
    codes = table.astype(np.int64)
    return np.where(codes < 4, codes, (4 + (codes & 3)) << np.maximum((codes >> 2) - 1, 0))


def coded_bits(counts: np.ndarray, bits: int, coder: str) -> float:
    """About how many bits a sequence takes, its table among them.

    Args:
        counts: how often each of the 2ᵇ numbers occurs.
        bits: b.
        coder: one of :data:`CODERS`.
    """
    if coder == "bits":
        return float(counts.sum() * bits)
    present = np.flatnonzero(counts)
    modelled = counts_of(approximate(counts))[present]
    lengths = _range_lengths if coder == "range" else _code_lengths
    each = lengths(modelled) if len(present) > 1 else np.zeros(len(present))
    return float((counts[present] * each).sum()) + TABLE_BITS * 2**bits


def _range_lengths(modelled: np.ndarray) -> np.ndarray:
    return -np.log2(modelled / modelled.sum())


def _code_lengths(modelled: np.ndarray) -> np.ndarray:
    symbol = load_constriction().symbol
    tree = symbol.huffman.EncoderHuffmanTree(modelled.astype(np.float64))
    lengths = np.zeros(len(modelled))
    for i in range(len(modelled)):
        encoder = symbol.QueueEncoder()
        encoder.encode_symbol(i, tree)
        lengths[i] = encoder.get_compressed_and_bitrate()[1]
    return lengths


def encode(numbers: np.ndarray, bits: int, coder: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers in ``[0, 2ᵇ)`` as bytes.

    Args:
        numbers: ``[n]``.
        bits: b, 0 to 16.
        coder: one of :data:`CODERS`.

    Returns:
        The table, empty for ``bits``, and the numbers; uint8 both.

    Raises:
        UserError: if ``constriction`` is needed and not installed.
    """
    if coder == "bits":
        return np.zeros(0, np.uint8), pack_bits(numbers, bits)
    codes = approximate(np.bincount(numbers, minlength=2**bits))
    present = np.flatnonzero(codes)
    indices = np.searchsorted(present, numbers).astype(np.int32)
    coded = np.zeros(0, np.uint8)
    if len(present) > 1:  # of one number the table says all
        write = _huffman if coder == "huffman" else _range
        coded = write(indices, counts_of(codes)[present].astype(np.float64))
    return pack_bits(codes, TABLE_BITS), coded


def decode(table: np.ndarray, coded: np.ndarray, bits: int, count: int, coder: str) -> np.ndarray:
    """What :func:`encode` coded, int32 ``[count]``.

    Raises:
        ValueError: if the bytes are not of such a sequence; not every damage is noticed.
        UserError: if ``constriction`` is needed and not installed.
    """
    if coder == "bits":
        return unpack_bits(coded, bits, count)
    codes = unpack_bits(table, TABLE_BITS, 2**bits)
    present = np.flatnonzero(codes)
    if len(present) < 2:
        return np.repeat(present.astype(np.int32), count)
    read = _read_huffman if coder == "huffman" else _read_range
    padded = np.pad(coded, (0, -len(coded) % 4)).view("<u4").astype(np.uint32)
    indices = read(padded, counts_of(codes)[present].astype(np.float64), count)
    return present[indices].astype(np.int32)


def _huffman(indices: np.ndarray, counts: np.ndarray) -> np.ndarray:
    symbol = load_constriction().symbol
    tree, encoder = symbol.huffman.EncoderHuffmanTree(counts), symbol.QueueEncoder()
    for index in indices.tolist():
        encoder.encode_symbol(index, tree)
    words, bits = encoder.get_compressed_and_bitrate()
    return words.astype("<u4").view(np.uint8)[: -(-bits // 8)]


def _read_huffman(words: np.ndarray, counts: np.ndarray, count: int) -> np.ndarray:
    symbol = load_constriction().symbol
    tree, decoder = symbol.huffman.DecoderHuffmanTree(counts), symbol.QueueDecoder(words)
    return np.fromiter((decoder.decode_symbol(tree) for _ in range(count)), np.int64, count)


def _range(indices: np.ndarray, counts: np.ndarray) -> np.ndarray:
    stream = load_constriction().stream
    encoder = stream.queue.RangeEncoder()
    encoder.encode(indices, stream.model.Categorical(counts, perfect=False))
    return encoder.get_compressed().astype("<u4").view(np.uint8)


def _read_range(words: np.ndarray, counts: np.ndarray, count: int) -> np.ndarray:
    stream = load_constriction().stream
    decoder = stream.queue.RangeDecoder(words)
    return decoder.decode(stream.model.Categorical(counts, perfect=False), count)
