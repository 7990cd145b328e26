"""Inputs of more bits than the hardware has: digit by digit, with shifts and adds.

Hubara et al. 2016, https://arxiv.org/abs/1609.07061 ("First layer"), do so with the 8-bit pixels
that a binary network reads; Moons, Bankman, Verhelst, *Embedded Deep Learning*,
Springer 2018, chapter 3, on hardware of Q bits. A convolution is linear in its input, so this is
exact. What it costs: :class:`dqnet.costs.bit_flops.BitFlops` with ``hardware_bits``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dqnet.errors import UserError
from dqnet.layers.geometry import Geometry


def digit_count(bits: int, digit_bits: int) -> int:
    """How many digits of Q bits a number of M bits has: ⌈M/Q⌉."""
    return -(-bits // digit_bits)


def split_digits(codes: Tensor, bits: int, digit_bits: int, signed: bool = False) -> Tensor:
    """Integers as digits d of Q bits, the lowest first: ``codes`` is Σ_i 2^(Q · i) · d_i.

    Args:
        codes: integers of M bits, of any shape.
        bits: M.
        digit_bits: Q, at least 1.
        signed: whether codes are −2^(M−1) … 2^(M−1) − 1, as two's complement; only the last digit
            is then negative. Otherwise they are 0 … 2^M − 1.

    Returns:
        int64 ``[⌈M/Q⌉, ...]``.

    Raises:
        UserError: if a code does not have M bits.
    """
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if ((codes < low) | (codes > high)).any():
        raise UserError(f"a code is not in {low} ... {high}, the range of {bits} bits")
    count = digit_count(bits, digit_bits)
    shifted = [codes.long() >> (digit_bits * i) for i in range(count)]
    return torch.stack([*(rest & (2**digit_bits - 1) for rest in shifted[:-1]), shifted[-1]])


def forward_by_digits(
    geometry: Geometry,
    codes: Tensor,
    weight: Tensor,
    bits: int,
    digit_bits: int,
    signed: bool = False,
) -> Tensor:
    """A layer's product of integer codes, as one of small integers for each digit.

    Args:
        geometry: of the layer.
        codes, bits, digit_bits, signed: as of :func:`split_digits`; ``[N, ...]``, zero having the
            code 0.
        weight: integer codes.

    Returns:
        int64 ``[N, ...]``, on a CPU: PyTorch has no integer convolution elsewhere.
    """
    digits = split_digits(codes, bits, digit_bits, signed)
    products = [geometry.forward(geometry.repeat(digit), weight.long()) for digit in digits]
    return sum(product << (digit_bits * i) for i, product in enumerate(products))
