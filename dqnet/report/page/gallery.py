"""What the page's gallery shows, in a form that a browser reads quickly."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex, to_rgb
from PIL import Image

from dqnet.formats import Precision
from dqnet.report.page.results import Results
from dqnet.units import unit_for

#: more images than this would make a page that is slow to open
LIMIT = 10_000
#: longest side of a sheet; a browser decodes one in a few milliseconds, and only when it is shown
SHEET = 1024
#: as of :func:`width_colours`, of a layer that does not run
NOT_RUN_COLOUR = {"width": 0, "label": "not run", "fill": "#9aa4ae55", "ink": "#101317"}
#: pixels are kept exactly up to this many bytes (10,000 images of 32 px), else at a quality of 90 %
LOSSLESS_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Gallery:
    """Images from the cheapest to the most expensive.

    Attributes:
        about: everything small, for JSON.
        arrays: little-endian arrays in base64, by name.
        sheets: WebP pictures of many images in base64, see :func:`make_sheets`.
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
    # gallery.js knows these types by the arrays' names.
    arrays = {
        "index": shown.astype("<u4"),
        "label": results.labels[shown].astype("<u4"),
        "prediction": results.predictions[shown].astype("<u4"),
        "topClasses": samples.top5_classes[shown].astype("<u4"),
        "chosen": samples.chosen[shown].astype("u1"),
        "confidence": results.confidence[shown].astype("<f4"),
        "topProbs": samples.top5_probs[shown].astype("<f4"),
        "scores": samples.scores[shown].astype("<f4"),
    }
    unit = unit_for(0.0)
    if results.cost is not None:
        # Whole, so that the page filters by the same numbers as per_sample.csv.
        arrays["cost"] = results.cost[shown].astype("<f8")
        unit = unit_for(results.cost.max())
    height, width = samples.images.shape[1:3]
    columns, rows = sheet_shape(samples.images[shown])
    about = {
        "count": len(shown),
        "evaluated": len(results.labels),
        "classes": results.class_names,
        "layers": results.layers,
        "widths": width_colours(results.candidates),
        "top": samples.top5_classes.shape[1],
        "unit": vars(unit),
        "costsDiffer": results.costs_differ,
        "cascade": results.is_cascade,
        "image": {"width": width, "height": height},
        "sheet": {"columns": columns, "rows": rows},
    }
    return Gallery(
        about,
        {name: _base64(array.tobytes()) for name, array in arrays.items()},
        [_base64(sheet) for sheet in make_sheets(samples.images[shown])],
    )


def sheet_shape(images: np.ndarray) -> tuple[int, int]:
    """How many images ``[N, H, W, C]`` stand on a sheet: beside each other, and below."""
    count, height, width, _ = images.shape
    columns, rows = max(1, SHEET // width), max(1, SHEET // height)
    return columns, min(rows, -(-count // columns))


def make_sheets(images: np.ndarray) -> list[bytes]:
    """Packs uint8 images ``[N, H, W, C]``, C = 1 or 3, N > 0, row by row, as WebP.

    WebP without loss takes two thirds of PNG's space; CIFAR-10 is 1.5 kB an image, and 0.4 kB with
    loss.
    """
    columns, rows = sheet_shape(images)
    lossless = images.nbytes <= LOSSLESS_BYTES
    sheets = []
    for start in range(0, len(images), columns * rows):
        part = images[start : start + columns * rows]
        tiles = np.zeros((rows * columns, *images.shape[1:]), np.uint8)
        tiles[: len(part)] = part
        sheet = np.block([[[tile] for tile in row] for row in np.split(tiles, rows)])
        file = io.BytesIO()
        Image.fromarray(sheet.squeeze(-1) if sheet.shape[-1] == 1 else sheet).convert("RGB").save(
            file, "WEBP", lossless=lossless, quality=80 if lossless else 90
        )
        sheets.append(file.getvalue())
    return sheets


def width_colours(precisions: tuple[Precision | None, ...]) -> list[dict[str, Any]]:
    """The ``width``, ``label``, colour (``fill``) and readable ``ink`` of each, cheapest lightest.

    A layer that does not run, ``None``, is a shade of grey.

    Part of viridis, whose order survives every form of colour blindness and a grey print; its ends
    are left out, being invisible on a white or a black page.
    """
    run = [precision for precision in precisions if precision is not None]
    places = np.linspace(0.9, 0.2, len(run))
    colours = [] if len(run) == len(precisions) else [NOT_RUN_COLOUR]
    for precision, fill in zip(run, map(to_hex, colormaps["viridis"](places)), strict=True):
        light = np.dot((0.2126, 0.7152, 0.0722), np.power(to_rgb(fill), 2.2)) > 0.18
        ink = "#101317" if light else "#ffffff"
        own = {"width": precision.width, "label": precision.label}
        colours.append(own | {"fill": fill, "ink": ink})
    return colours


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
