"""Confidence interval of a mean of paired differences."""

from __future__ import annotations

import numpy as np

#: indices drawn at once, which bounds the memory
CHUNK = 2**22


def bootstrap_mean(
    values: np.ndarray, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of column means (Efron and Tibshirani 1993, section 13.3).

    Rows are resampled with replacement, all columns of a row together.

    Args:
        values: float ``[N, M]``: M statistics of N images.
        confidence: the share of resampled means inside the interval, in (0, 1).
        resamples: how many.
        seed: of the resampling.

    Returns:
        The lower and the upper ends, ``[M]`` each.
    """
    rng = np.random.default_rng(seed)
    count, at_once = len(values), max(1, CHUNK // len(values))
    means = []
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start), count
        drawn = rng.integers(count, size=size)
        means.append(np.stack([column[drawn].mean(1) for column in values.T], 1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail], axis=0)
    return low, high
