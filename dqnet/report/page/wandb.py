"""The report's figures and gallery in Weights & Biases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dqnet.report.page.gallery import spread
from dqnet.report.page.results import Results, read_results

if TYPE_CHECKING:  # a second's import, spared where it is not used
    import wandb

#: rows of the table; every picture in it is a file of its own
LIMIT = 1000


def log_report(run: wandb.Run, folder: Path) -> None:
    """Logs ``report/*.png`` as images and the gallery as a table.

    Args:
        run: an open run.
        folder: what :func:`dqnet.report.page.html.write_report` was called with.
    """
    import wandb

    pictures = sorted((folder / "report").glob("*.png"))
    record = {f"report/{path.stem}": wandb.Image(str(path)) for path in pictures}
    run.log(record | {"report/gallery": _table(read_results(folder))})


def _table(results: Results) -> wandb.Table:
    """At most ``LIMIT`` images, cheapest first, evenly over the cost."""
    import wandb

    table = wandb.Table(
        columns=[
            *("image", "index", "label", "prediction", "correct", "confidence", "bit_flops"),
            *results.layers,
        ]
    )
    for i in spread(results.cheapest_first, LIMIT):
        pixels = results.samples.images[i]
        table.add_data(
            wandb.Image(pixels[..., 0] if pixels.shape[-1] == 1 else pixels),
            int(i),
            results.class_names[results.labels[i]],
            results.class_names[results.predictions[i]],
            bool(results.correct[i]),
            float(results.confidence[i]),
            None if results.cost is None else float(results.cost[i]),
            *results.widths[i].tolist(),
        )
    return table
