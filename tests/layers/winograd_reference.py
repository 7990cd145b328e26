"""Quantized Winograd convolutions in int64 alone: additions, products of codes and shifts."""

from __future__ import annotations

import numpy as np
import torch

from dqnet.layers.winograd import ALGORITHMS


def rounded(numerator, denominator):
    """numerator / denominator to the nearest integer, halves to the even one; d above 0."""
    quotient, rest = np.divmod(2 * numerator + denominator, 2 * denominator)
    return quotient - ((rest == 0) & (quotient % 2 == 1))


def codes(numerator, denominator, exponent, bits):
    """numerator / denominator in units of 2^exponent, as integers of ``bits`` bits."""
    up, down = np.maximum(-exponent, 0), np.maximum(exponent, 0)
    found = rounded(numerator << up, np.int64(denominator) << down)
    return found.clip(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def integer_winograd(x, weight, tile, bits, input_exponents, weight_exponents):
    """The sums of a layer, tile by tile.

    Args:
        x: int64 ``[N, C, H, W]``, margins included.
        weight: int64 ``[O, C, 3, 3]``.
        tile, bits: of the layer.
        input_exponents, weight_exponents: log₂ of the steps, int64 ``[m + 2, m + 2]``.

    Returns:
        int64 ``[N, O, H − 2, W − 2]`` and the exponent that all of it is in units of 2 to.
    """
    own = ALGORITHMS[tile]
    b, g, a = (np.array(matrix, np.int64) for matrix in (own.input, own.weight, own.output))
    images, _, height, width = x.shape
    rows, columns = -(-(height - 2) // tile), -(-(width - 2) // tile)
    x = np.pad(x, ((0, 0), (0, 0), (0, rows * tile + 2 - height), (0, columns * tile + 2 - width)))
    transformed = codes(g @ weight @ g.T, own.denominator**2, weight_exponents, bits)
    exponents = input_exponents + weight_exponents
    lowest = exponents.min()
    y = np.zeros((images, len(weight), rows * tile, columns * tile), np.int64)
    for i in range(rows):
        for j in range(columns):
            top, left = i * tile, j * tile
            d = x[:, None, :, top : top + tile + 2, left : left + tile + 2]
            d = codes(b @ d @ b.T, 1, input_exponents, bits)
            products = (d * transformed).sum(2) << (exponents - lowest)
            y[:, :, top : top + tile, left : left + tile] = a @ products @ a.T
    return y[:, :, : height - 2, : width - 2], int(lowest)


def exponents(quantizer, tile):
    """log₂ of a quantizer's steps, int64 ``[m + 2, m + 2]``."""
    found = np.ceil(quantizer.log2_threshold.detach().double().numpy()).astype(np.int64)
    found = found - (quantizer.formats[0].bits - 1)
    return np.broadcast_to(found, (tile + 2) ** 2).reshape(tile + 2, tile + 2)


@torch.no_grad()
def reference_output(layer, x):
    """float32 ``[N, O, H, W]`` of a layer with zeros as margins, and the int64 sums."""

    def whole(encoded):
        return encoded.codes.numpy().astype(np.int64) - encoded.zero_point.long().numpy()

    inputs = layer.input_quantizer.encode(x, 0)
    weights = layer.weight_quantizer.encode(layer.weight, 0)
    vertical, horizontal = layer.padding
    padding = ((0, 0), (0, 0), (vertical, vertical), (horizontal, horizontal))
    domain = layer.winograd
    tile, bits = domain.how.tile, domain.how.bits
    sums, exponent = integer_winograd(
        np.pad(whole(inputs), padding), whole(weights), tile, bits,
        exponents(domain.input_quantizer, tile), exponents(domain.weight_quantizer, tile),
    )  # fmt: skip
    scale = inputs.scale.double().numpy() * weights.scale.double().numpy().reshape(-1, 1, 1)
    y = sums * 2.0**exponent * scale
    if layer.bias is not None:
        y = y + layer.bias.double().numpy().reshape(-1, 1, 1)
    return y.astype(np.float32), sums
