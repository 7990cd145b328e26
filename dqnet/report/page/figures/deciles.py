"""The images in ten equal parts, from the cheapest to the most expensive."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PARTS = 10


@dataclass(frozen=True)
class Part:
    """One part: how many images, their least, mean and largest cost, and their mean value."""

    images: int
    least: float
    middle: float
    largest: float
    value: float


def deciles(cost: np.ndarray, values: np.ndarray, parts: int = PARTS) -> list[Part]:
    """Means of ``values`` in equal parts of the images; fewer parts if there are fewer images.

    Many images can cost the same, and a border between two parts can fall among them. Then which
    image is on which side is chance: each counts with the mean of all that cost the same, the
    expectation over every way to order them.

    Args:
        cost: ``[N]``.
        values: ``[N]``, numbers or booleans.
    """
    _, group, sizes = np.unique(cost, return_inverse=True, return_counts=True)
    expected = (np.bincount(group, values) / sizes)[group]
    order = np.argsort(cost, kind="stable")
    return [
        Part(
            images=len(part),
            least=float(cost[part[0]]),
            middle=float(cost[part].mean()),
            largest=float(cost[part[-1]]),
            value=float(expected[part].mean()),
        )
        for part in np.array_split(order, min(parts, len(order)))
    ]
