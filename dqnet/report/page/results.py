"""What an evaluation left in its folder, as arrays: all that a report is made from."""

from __future__ import annotations

import csv
import math
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dqnet.errors import UserError
from dqnet.evaluation.samples import Samples, read_samples
from dqnet.formats import Precision
from dqnet.runtime.files import read_json

#: per_sample.csv's columns before the routed layers'
_HEAD = ("index", "label", "prediction", "correct", "confidence", "bit_flops")


@dataclass(frozen=True, eq=False)
class Results:
    """One evaluation. N images in the order of the data, L routed layers (0: nothing is routed).

    Attributes:
        folder: where the files lie.
        figures: ``eval.json``.
        samples: ``samples.npz``: thumbnails, scores and best classes.
        labels, predictions: int64 ``[N]``.
        confidence: float64 ``[N]``: the probability of the predicted class.
        cost: float64 ``[N]``: Bit-FLOPs; ``None`` for a full-precision model.
        widths: ``[N, L]``: the width that each routed layer ran at, in bits.
        layers: module names of the routed layers, in execution order.
        class_names: a name for every class.
        curve: ``curve.csv``, one row per budget, by rising cost; empty where there is none.
    """

    folder: Path
    figures: dict[str, Any]
    samples: Samples
    labels: np.ndarray
    predictions: np.ndarray
    confidence: np.ndarray
    cost: np.ndarray | None
    widths: np.ndarray
    layers: tuple[str, ...]
    class_names: tuple[str, ...]
    curve: tuple[dict[str, float], ...]

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
    def candidates(self) -> tuple[Precision, ...]:
        """The precisions that routed layers choose from, ascending."""
        return tuple(map(Precision.parse, self.samples.widths)) if self.layers else ()


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
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{folder / 'samples.npz'} cannot be read: {error}") from error
    with (folder / "per_sample.csv").open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    if tuple(head[: len(_HEAD)]) != _HEAD or not rows:
        raise UserError(f"{folder / 'per_sample.csv'} has no images, or not eval.py's columns")
    table = np.array(rows)
    labels, predictions = table[:, 1].astype(np.int64), table[:, 2].astype(np.int64)
    if not (
        np.array_equal(labels, samples.labels) and np.array_equal(predictions, samples.predictions)
    ):
        raise UserError(
            f"per_sample.csv and samples.npz in {folder} are not of one evaluation: "
            "python eval.py report=html writes both"
        )
    layers = tuple(head[len(_HEAD) :])
    figures = read_json(folder / "eval.json")
    return Results(
        folder=folder,
        figures=figures,
        samples=samples,
        labels=labels,
        predictions=predictions,
        confidence=table[:, 4].astype(np.float64),
        cost=table[:, 5].astype(np.float64) if table[0, 5] else None,
        widths=_widths(table[:, len(_HEAD) :]).reshape(len(rows), len(layers)),
        layers=layers,
        class_names=_class_names(samples, max(labels.max(), predictions.max()) + 1),
        curve=_read_curve(folder / "curve.csv", figures),
    )


def _widths(table: np.ndarray) -> np.ndarray:
    """The widths of precisions by their names, in bits."""
    names, index = np.unique(table, return_inverse=True)
    return np.array([Precision.parse(str(name)).width for name in names])[index]


def printable(text: str) -> str:
    """``text`` with what XML and UTF-8 cannot hold shown as a replacement character.

    Folder names become class names, and a file system takes almost any byte.
    """
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _class_names(samples: Samples, at_least: int) -> tuple[str, ...]:
    names = [printable(str(name)) for name in samples.class_names]
    count = max(at_least, int(samples.top5_classes.max()) + 1)
    return tuple(names + [str(i) for i in range(len(names), count)])


def _read_curve(path: Path, figures: dict[str, Any]) -> tuple[dict[str, float], ...]:
    """The curve by rising cost; none if it passes by the evaluation, being of another one."""
    if not path.exists():
        return ()
    with path.open(encoding="utf-8", newline="") as file:
        rows = [
            {key: float(value) for key, value in row.items() if value}
            for row in csv.DictReader(file)
        ]
    for row in rows:
        same = row["budget_lambda"] == figures["budget_lambda"]
        if same and not math.isclose(row["bit_flops"], figures["bit_flops"] or 0, rel_tol=1e-3):
            return ()
    return tuple(sorted(rows, key=lambda row: row["bit_flops"]))
