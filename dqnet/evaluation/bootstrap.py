"""Confidence intervals of means over images."""

from __future__ import annotations

import numpy as np
from scipy import stats

CONFIDENCE, RESAMPLES = 0.95, 10_000
#: images drawn at once: few enough for the cache
_AT_ONCE = 2**18


def mean_intervals(values: np.ndarray) -> list[dict[str, float]]:
    """Percentile bootstrap intervals of means (Efron and Tibshirani 1993, section 13.3).

    Args:
        values: float ``[N, M]``: M statistics of N images, N > 1. Images are resampled with
            replacement, all statistics of an image together, and always in the same way.

    Returns:
        For each statistic its mean, ``points``, and the ends ``low`` and ``high``.
    """
    columns = np.ascontiguousarray(values.T)

    def means(drawn: np.ndarray, axis: int) -> np.ndarray:
        # Column by column, which is four times as fast as indexing all of them at once.
        return np.stack([column[drawn].mean(axis) for column in columns])

    interval = stats.bootstrap(
        (np.arange(len(values)),),
        means,
        n_resamples=RESAMPLES,
        batch=max(1, _AT_ONCE // len(values)),
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    found = np.stack([columns.mean(1), interval.low, interval.high], 1)
    return [{"points": mean, "low": low, "high": high} for mean, low, high in found.tolist()]
