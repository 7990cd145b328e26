"""``samples.npz``: the images of an evaluation and what the network made of each, for the report.

A plain NumPy archive, so that a report is drawn without the model and without the data set.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from dqnet.runtime.files import write_atomically

#: the width of a cascade's layers that an image did not run
NOT_RUN = "none"


@dataclass(frozen=True, eq=False)
class Samples:
    """The arrays of ``samples.npz``; N images in the order of ``per_sample.csv``.

    A float model has L = 0 routed layers.

    Attributes:
        images: uint8 ``[N, H, W, C]``, as the network saw them but for size; C is 1 or 3.
        labels, predictions: int64 ``[N]``.
        top5_classes: int64 ``[N, min(5, classes)]``, the best class first.
        top5_probs: float32 of the same shape: their probabilities.
        scores: float16 ``[N, L, K]``: the controller's, before any budget; of a cascade
            ``[N, L, 0]``.
        chosen: uint8 ``[N, L]``: index into ``widths`` of what each layer ran at.
        layers: str ``[L]``: module names of the routed layers.
        widths: uint8 ``[K]``: the candidates; str where one is a pair, ``w2a4``; empty for a
            float model; ``NOT_RUN`` first for a cascade.
        class_names: str ``[classes]``.
    """

    images: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray
    top5_classes: np.ndarray
    top5_probs: np.ndarray
    scores: np.ndarray
    chosen: np.ndarray
    layers: np.ndarray
    widths: np.ndarray
    class_names: np.ndarray


def write_samples(path: Path, samples: Samples) -> None:
    """Writes ``samples.npz``, atomically."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a name, NumPy would add .npz to it
            np.savez_compressed(file, **vars(samples))

    write_atomically(path, write)


def read_samples(path: Path) -> Samples:
    """What :func:`write_samples` wrote; no code in the file is run."""
    with np.load(path, allow_pickle=False) as arrays:
        return Samples(**{field.name: arrays[field.name] for field in fields(Samples)})
