"""K-means of one-dimensional values, which scikit-learn does, and where it starts."""

from __future__ import annotations

import numpy as np

from dqnet.errors import UserError, unknown_name

#: Han et al. 2016, section 3.2
INITIALIZATIONS = ("linear", "density", "random")
#: more values are first reduced to the means of so many equal shares of them, in ascending order
MOST_VALUES = 2**16


def cluster(values: np.ndarray, count: int, init: str, seed: int) -> np.ndarray:
    """The centroids of k-means, ascending, float64 ``[count]``.

    Args:
        values: finite, ``[M]``.
        count: how many clusters, at most M.
        init: the first centroids: ``linear`` from the smallest to the largest value; ``density``,
            quantiles at even steps; ``random``, values that are drawn.
        seed: of the draw.

    Raises:
        UserError: if there are more clusters than values.
    """
    from sklearn.cluster import KMeans  # a second, spared where nothing is clustered
    from threadpoolctl import threadpool_limits

    if count > len(values):
        raise UserError(
            f"a codebook of {count} values is larger than the tensor, which has {len(values)}: "
            "use fewer bits for this layer"
        )
    values = np.sort(values.astype(np.float64))
    if len(values) > MOST_VALUES:
        values = np.array([part.mean() for part in np.array_split(values, MOST_VALUES)])
    first = _first_centroids(values, count, init, seed)
    distinct = np.unique(values)
    if len(distinct) <= count:  # each is its own centroid
        return np.pad(distinct, (0, count - len(distinct)), mode="edge")
    with threadpool_limits(1):  # of several threads it is open which adds first
        fitted = KMeans(count, init=first[:, None], n_init=1).fit(values[:, None])
    return np.sort(fitted.cluster_centers_[:, 0])


def check_init(init: str) -> None:
    """Raises UserError unless there is an initialization of this name."""
    if init not in INITIALIZATIONS:
        raise unknown_name("init", init, INITIALIZATIONS)


def _first_centroids(values: np.ndarray, count: int, init: str, seed: int) -> np.ndarray:
    if init == "linear":
        return np.linspace(values[0], values[-1], count)
    if init == "density":
        return np.quantile(values, (np.arange(count) + 0.5) / count)
    return np.random.default_rng(seed).choice(values, count, replace=False)
