"""What a search chooses by: a run's metrics on held-out images, never those of the test part."""

from __future__ import annotations

import json
from pathlib import Path

from dqnet.errors import UserError
from dqnet.runtime.files import read_json
from dqnet.training.metrics import PER_EPOCH

#: what a search may ask for, under the names of metrics.jsonl
METRICS = (*(f"val_{name}" for name in PER_EPOCH), "mean_width")


def best_metrics(folder: Path, names: list[str]) -> dict[str, float]:
    """Metrics of a complete run's best epoch; the run must have had one.

    Args:
        folder: the run folder.
        names: of :data:`METRICS`.

    Raises:
        UserError: if the run has no such metric, as a float network has no Bit-FLOPs.
    """
    best = read_json(folder / "summary.json")["best_epoch"]
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = next(m for m in map(json.loads, lines) if m["epoch"] == best)
    for name in names:
        if found[name] is None:
            raise UserError(f"a search by {name} needs quantized networks: {folder} has none")
    return {name: float(found[name]) for name in names}
