"""From a layer's quantizers to integers that 8-bit hardware holds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from dqnet.errors import UserError
from dqnet.export.nodes import Grid, Weight
from dqnet.layers import QuantLayer
from dqnet.quantizers import Codes, Quantizer

#: codes of 8 bits
CODES = 256
#: small floats that ONNX has a type of
FLOAT8 = ("e4m3", "e5m2")
#: beyond every grid, and far from float32's largest number
BEYOND = 1e30


@torch.no_grad()
def grid_of(quantizer: Quantizer, k: int, where: str) -> Grid:
    """The grid that a quantizer of inputs rounds to, as uint8 codes.

    Args:
        quantizer: calibrated, in evaluation mode.
        k: index of the format.
        where: what it is of, for errors.

    Raises:
        UserError: if it has no such grid.
    """
    method, bits = type(quantizer).__name__, quantizer.formats[k].bits
    _check_bits(bits, where)
    if not quantizer.ready:
        raise UserError(f"{where} has no range yet: run dqnet.calibrate first")
    device = quantizer.signed_form.device
    codes = quantizer.encode(torch.tensor([-BEYOND, 0.0, BEYOND], device=device), k).cpu()
    _check_evenly_spaced(codes, method, where)
    zero_point, scale = codes.zero_point.item(), codes.scale.item()
    if zero_point != round(zero_point):
        raise UserError(
            f"{where} is on a grid of {method} whose zero is between two codes, which integer "
            "hardware has not: quantize inputs with lsq, affine, symmetric or fixed_point"
        )
    low, high = codes.codes[0].item(), codes.codes[2].item()
    offset = max(0, -low)
    grid = Grid(scale, int(zero_point) + offset, low + offset, high + offset)
    _check_rounding(quantizer, k, grid, where)
    return grid


def _check_rounding(quantizer: Quantizer, k: int, grid: Grid, where: str) -> None:
    """Raises UserError unless the quantizer rounds to the nearest number of the grid."""
    codes = torch.arange(grid.low, grid.high + 1, device=quantizer.signed_form.device)
    for shift in (-0.25, 0.25):  # off the ties
        numbers = (codes + shift - grid.zero_point) * grid.scale
        found = quantizer(numbers.float(), k) / grid.scale + grid.zero_point
        if not torch.allclose(found, codes.to(found), atol=0.01, rtol=0):
            raise UserError(
                f"{where}: {type(quantizer).__name__} does not round to the nearest of evenly "
                "spaced numbers, which is what integer hardware does"
            )


@torch.no_grad()
def weight_of(layer: QuantLayer, k: int, name: str) -> Weight:
    """A layer's weight at its k-th precision, in whole codes around zero, or in small floats.

    Codes whose zero lies between two of them are doubled: 2c − 2z, on half the scale.

    Raises:
        UserError: if they are not evenly spaced or do not fit 8 bits.
    """
    where = f"the weight of layer {name!r}"
    method, own = type(layer.weight_quantizer).__name__, layer.precisions[k].weight
    _check_bits(own.bits, where)
    codes = dict(layer.encoded_weights())[own].cpu()
    scale = codes.scale.double().numpy()
    small_float = str(own) if str(own) in FLOAT8 and codes.block is None else None
    if small_float is None:
        _check_evenly_spaced(codes, method, where)
        centered, scale = _whole(codes, scale, f"{method} at {own.bits} bits", where)
    else:
        centered = codes.table.double().numpy()[codes.codes.numpy()]
    scale = np.broadcast_to(scale.reshape(-1), len(centered)).copy()
    norm_scale = layer.norm_scale()
    if norm_scale is not None:
        # Codes are of the weight times γ/σ. Where that is 0, so is what the norm makes of it.
        gain = norm_scale.double().cpu().numpy().reshape(-1)
        scale = np.divide(scale, gain, out=np.zeros_like(scale), where=gain != 0)
    return scaled(Weight(centered, np.ones_like(scale), own.bits, small_float), scale)


def _whole(
    codes: Codes, scale: np.ndarray, method: str, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Codes around zero, int16, and their scale."""
    centered = codes.codes.double().numpy() - codes.zero_point.double().numpy()
    if not np.array_equal(centered, np.rint(centered)):
        centered, scale = 2 * centered, scale / 2
    if not np.array_equal(centered, np.rint(centered)):
        raise UserError(f"{where} is on a grid of {method} that does not contain zero")
    rows = centered.reshape(len(centered), -1)
    if (np.ptp(rows, axis=1) >= CODES).any():
        raise UserError(
            f"{where}: codes of {method} are the odd numbers from {rows.min():.0f} to "
            f"{rows.max():.0f}, which do not fit 8 bits: use at most 7 bits, or lsq, affine or "
            "symmetric"
        )
    return centered.astype(np.int16), scale


def scaled(weight: Weight, factor: np.ndarray) -> Weight:
    """A weight whose channels are multiplied by factors ``[O]``; a negative one flips its codes."""
    flips = np.where(factor < 0, -1, 1).astype(np.int16)
    codes = weight.codes * flips.reshape(-1, *[1] * (weight.codes.ndim - 1))
    return replace(weight, codes=codes, scale=weight.scale * np.abs(factor))


def _check_bits(bits: int, where: str) -> None:
    if bits > 8:
        raise UserError(f"{where} has {bits} bits; integer networks have at most 8")


def _check_evenly_spaced(codes: Codes, method: str, where: str) -> None:
    if codes.table is not None or codes.block is not None:
        what = "a table of values" if codes.table is not None else "a scale for each block"
        raise UserError(
            f"{where} has {what} ({method}), which integer hardware has not: use lsq, affine, "
            "symmetric, fixed_point, qnn, or weights of dorefa"
        )
