"""The report's figures and gallery in Weights & Biases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from dqnet.report.page.gallery import spread
from dqnet.report.page.results import read_results

if TYPE_CHECKING:  # a second's import, spared where it is not used
    import wandb

#: rows of the table; every picture in it is a file of its own
LIMIT = 1000


def log_report(run: wandb.Run, folder: Path) -> None:
    """Logs ``report/*.png`` of an evaluation's folder, and ``LIMIT`` images as a table."""
    import wandb

    results = read_results(folder)
    shown = spread(results.cheapest_first, LIMIT)
    pixels = results.samples.images[shown]
    names = pd.Series(results.class_names)
    table = pd.DataFrame(
        {
            "image": [wandb.Image(p.squeeze(-1) if p.shape[-1] == 1 else p) for p in pixels],
            "index": shown,
            "label": names[results.labels[shown]].tolist(),
            "prediction": names[results.predictions[shown]].tolist(),
            "correct": results.correct[shown],
            "confidence": results.confidence[shown],
            "bit_flops": None if results.cost is None else results.cost[shown],
            **dict(zip(results.layers, results.widths[shown].T, strict=True)),
        }
    )
    pictures = sorted((folder / "report").glob("*.png"))
    record = {f"report/{path.stem}": wandb.Image(str(path)) for path in pictures}
    run.log(record | {"report/gallery": wandb.Table(dataframe=table)})
