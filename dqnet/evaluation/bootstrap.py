"""Confidence interval of a mean over images."""

from __future__ import annotations

import numpy as np
from scipy import stats

#: images drawn at once: few enough for the cache
DRAWN_AT_ONCE = 2**18


def bootstrap_mean(
    values: np.ndarray, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of column means (Efron and Tibshirani 1993, section 13.3).

    Rows are resampled with replacement, all columns of a row together.

    Args:
        values: float ``[N, M]``: M statistics of N images, N > 1.
        confidence: the share of resampled means inside the interval, in (0, 1).
        resamples: how many.
        seed: of the resampling.

    Returns:
        The lower and the upper ends, ``[M]`` each.
    """
    columns = np.ascontiguousarray(values.T)

    def means(drawn: np.ndarray, axis: int) -> np.ndarray:
        # Column by column, which is four times as fast as indexing all of them at once.
        return np.stack([column[drawn].mean(axis) for column in columns])

    interval = stats.bootstrap(
        (np.arange(len(values)),),
        means,
        n_resamples=resamples,
        batch=max(1, DRAWN_AT_ONCE // len(values)),
        vectorized=True,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return interval.low, interval.high
