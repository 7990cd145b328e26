"""Oracles for number formats: every level written out, and numeric derivatives. NumPy only."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

ALL_WIDTHS = range(1, 17)


def even_levels(low: float, high: float, width: int) -> np.ndarray:
    """The ``2**width`` evenly spaced values from ``low`` to ``high``."""
    return np.linspace(low, high, 2**width)


def lsq_levels(step: float, width: int, signed: bool) -> np.ndarray:
    """The codes of section 2 of the LSQ paper times the step; one signed bit is ±step."""
    if signed and width == 1:
        return np.array([-step, step])
    codes = np.arange(2**width) - (2 ** (width - 1) if signed else 0)
    return codes * step


def nearest(x: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """For every element the nearest of the ascending ``levels``, found among its neighbours."""
    above = np.searchsorted(levels, x).clip(1, len(levels) - 1)
    low, high = levels[above - 1], levels[above]
    return np.where(x - low < high - x, low, high)


def spread_values(top: float, count: int = 4001, seed: int = 0) -> Tensor:
    """Random float64 values inside [-top, top] and beyond, none of them halfway by design."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, generator=generator, dtype=torch.float64) - 0.5) * 3 * top


def assert_levels(actual: Tensor, expected: np.ndarray) -> None:
    """Equal up to float64's rounding: far less than the distance of two 16-bit levels."""
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=1e-12, atol=1e-13)


def numeric_gradient(
    f: Callable[[np.ndarray], np.ndarray], x: np.ndarray, upstream: np.ndarray, h: float = 1e-5
) -> np.ndarray:
    """The gradient of ``sum(upstream * f(x))`` by central differences, one element at a time."""
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        ahead, behind = x.copy(), x.copy()
        ahead[i] += h
        behind[i] -= h
        gradient[i] = (upstream * (f(ahead) - f(behind))).sum() / (2 * h)
    return gradient
