"""What an evaluation left in its folder, as arrays: all that a report is made from."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dqnet.errors import UserError
from dqnet.evaluation.samples import NOT_RUN, Samples, read_samples
from dqnet.formats import Precision
from dqnet.runtime.files import read_json

#: of per_sample.csv, what samples.npz does not have, and what shows that they belong together
_COLUMNS = ["label", "prediction", "confidence", "bit_flops"]


@dataclass(frozen=True, eq=False)
class Results:
    """One evaluation. N images in the order of the data, L routed layers (0: nothing is routed).

    Attributes:
        metrics: ``eval.json``.
        samples: ``samples.npz``: thumbnails, labels, predictions, scores and best classes.
        confidence: float64 ``[N]``: the probability of the predicted class.
        cost: float64 ``[N]``: Bit-FLOPs; ``None`` for a full-precision model.
        widths: ``[N, L]``: the width that each routed layer ran at, in bits.
        layers: module names of the routed layers, in execution order.
        class_names: a name for every class.
        curve: ``curve.csv``, one row per budget, by rising cost; empty where there is none.
    """

    metrics: dict[str, Any]
    samples: Samples
    confidence: np.ndarray
    cost: np.ndarray | None
    widths: np.ndarray
    layers: tuple[str, ...]
    class_names: tuple[str, ...]
    curve: pd.DataFrame

    @property
    def labels(self) -> np.ndarray:
        """int64 ``[N]``."""
        return self.samples.labels

    @property
    def predictions(self) -> np.ndarray:
        """int64 ``[N]``."""
        return self.samples.predictions

    @property
    def correct(self) -> np.ndarray:
        """bool ``[N]``."""
        return self.labels == self.predictions

    @property
    def costs_differ(self) -> bool:
        """Whether there is anything to show about which image costs what."""
        return self.cost is not None and bool(self.cost.min() < self.cost.max())

    @cached_property
    def cheapest_first(self) -> np.ndarray:
        """int64 ``[N]``: images by cost; those of equal cost in a random order, always the same.

        Data often come class by class: in their order, cheap would look like the first class.
        """
        shuffled = np.random.default_rng(0).permutation(len(self.labels))
        return shuffled if self.cost is None else np.lexsort((shuffled, self.cost))

    @property
    def candidates(self) -> tuple[Precision | None, ...]:
        """The precisions that routed layers choose from, ascending; ``None``: a layer does not run.

        The latter is the first one of a cascade.
        """
        return tuple(map(_precision, self.samples.widths)) if self.layers else ()

    @property
    def is_cascade(self) -> bool:
        """Whether images may have made two passes."""
        return "cascade" in self.metrics


def read_results(folder: Path) -> Results:
    """Reads an evaluation's files.

    Raises:
        UserError: if one is missing, damaged, or of another evaluation than the rest.
    """
    for name in ("eval.json", "per_sample.csv", "samples.npz"):
        if not (folder / name).exists():
            raise UserError(f"{folder / name} is missing: python eval.py report=html writes it")
    try:
        samples = read_samples(folder / "samples.npz")
        csv = folder / "per_sample.csv"
        table = pd.read_csv(csv, usecols=_COLUMNS, dtype=str).astype(float)  # exactly
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"the evaluation in {folder} cannot be read: {error}") from error
    if not (
        np.array_equal(table["label"], samples.labels)
        and np.array_equal(table["prediction"], samples.predictions)
    ):
        raise UserError(
            f"per_sample.csv and samples.npz in {folder} are not of one evaluation: "
            "python eval.py report=html writes both"
        )
    metrics = read_json(folder / "eval.json")
    widths = np.array([p.width if p else 0 for p in map(_precision, samples.widths)])
    classes = max(samples.labels.max(), samples.top5_classes.max()) + 1
    names = [printable(str(name)) for name in samples.class_names]
    return Results(
        metrics=metrics,
        samples=samples,
        confidence=table["confidence"].to_numpy(),
        cost=None if table["bit_flops"].hasnans else table["bit_flops"].to_numpy(),
        widths=widths[samples.chosen],
        layers=tuple(samples.layers.tolist()),
        class_names=(*names, *map(str, range(len(names), classes))),
        curve=read_curve(folder / "curve.csv"),
    )


def _precision(name: str) -> Precision | None:
    return None if name == NOT_RUN else Precision.parse(name)


def printable(text: str) -> str:
    """``text`` with what XML and UTF-8 cannot hold shown as a replacement character.

    Folder names become class names, and a file system takes almost any byte.
    """
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def read_curve(path: Path) -> pd.DataFrame:
    """The rows of ``curve.csv``, by rising cost; none without the file."""
    if not path.exists():
        return pd.DataFrame(columns=["budget_lambda", "bit_flops", "top1"])
    return pd.read_csv(path, dtype=str).astype(float).sort_values("bit_flops")
