"""What the page's gallery shows, in a form that a browser reads quickly."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np

from dqnet.report.page.results import Results
from dqnet.report.page.sprites import make_sprites
from dqnet.report.page.theme import width_colours
from dqnet.units import unit_for

#: more images than this would make a page that is slow to open
LIMIT = 10_000


@dataclass(frozen=True)
class Gallery:
    """Images from the cheapest to the most expensive.

    Attributes:
        about: everything small, for JSON; ``types`` are those of ``arrays``, as NumPy writes them.
        arrays: little-endian arrays in base64, by name.
        sheets: sprite sheets in base64.
    """

    about: dict[str, Any]
    arrays: dict[str, str]
    sheets: list[str]


def spread(order: np.ndarray, limit: int) -> np.ndarray:
    """At most ``limit`` of ``order``, evenly over it, the first and the last among them."""
    if len(order) <= limit:
        return order
    return order[np.linspace(0, len(order) - 1, limit).round().astype(np.int64)]


def make_gallery(results: Results) -> Gallery:
    """The gallery of an evaluation; of a large one, an even selection over the cost order."""
    shown = spread(results.cheapest_first, LIMIT)
    samples = results.samples
    class_type = "<u2" if len(results.class_names) <= 2**16 else "<u4"
    arrays = {
        "index": shown.astype("<u4"),
        "label": results.labels[shown].astype(class_type),
        "prediction": results.predictions[shown].astype(class_type),
        "confidence": results.confidence[shown].astype("<f4"),
        "chosen": samples.chosen[shown].astype("u1"),
        "scores": samples.scores[shown].astype("<f2"),
        "topClasses": samples.top5_classes[shown].astype(class_type),
        "topProbs": samples.top5_probs[shown].astype("<f4"),
    }
    if results.cost is not None:
        # Whole, so that the page filters by the same numbers as per_sample.csv.
        arrays["cost"] = results.cost[shown].astype("<f8")
    sprites = make_sprites(samples.images[shown])
    unit = unit_for(0.0 if results.cost is None else results.cost.max())
    about = {
        "count": len(shown),
        "evaluated": len(results.labels),
        "types": {name: array.dtype.str for name, array in arrays.items()},
        "classes": results.class_names,
        "layers": results.layers,
        "widths": [
            {
                "width": c.precision.width,
                "label": c.precision.label,
                "fill": c.fill,
                "ink": c.ink,
            }
            for c in width_colours(results.candidates)
        ],
        "top": samples.top5_classes.shape[1],
        "unit": {"divisor": unit.divisor, "letter": unit.letter},
        "costsDiffer": results.costs_differ,
        "image": {"width": sprites.width, "height": sprites.height},
        "sheet": {"columns": sprites.columns, "rows": sprites.rows},
    }
    return Gallery(
        about,
        {name: _base64(array.tobytes()) for name, array in arrays.items()},
        [_base64(sheet) for sheet in sprites.sheets],
    )


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
