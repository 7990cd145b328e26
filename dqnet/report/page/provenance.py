"""Which run a report is about."""

from __future__ import annotations

import platform
import shlex
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

#: metrics worth reading here, under the names that the page gives them
FACTS = {
    **{name: name for name in ("seed", "split", "epoch", "checkpoint")},
    "params": "parameters",
    "macs": "multiply-accumulates",
}


@dataclass(frozen=True)
class Provenance:
    """How to make the run again.

    Attributes:
        folder: the run folder's name.
        command: what started it; empty where the run's record is not there.
        config: its configuration as YAML; empty where the record is not there.
        facts: names and values worth reading first.
    """

    folder: str
    command: str
    config: str
    facts: dict[str, str]


def provenance_of(folder: Path, metrics: dict[str, Any]) -> Provenance:
    """From ``.hydra/`` in the evaluation's folder, or beside the checkpoint if it is elsewhere."""
    places = folder, Path(metrics["checkpoint"]).parent
    run = next((place for place in places if (place / ".hydra/config.yaml").exists()), folder)
    config, command, facts = run / ".hydra/config.yaml", "", {}
    if config.exists():
        overrides = OmegaConf.to_container(OmegaConf.load(run / ".hydra/overrides.yaml"))
        command = shlex.join(["python", "train.py", *map(str, overrides)])
        recorded = OmegaConf.load(config)
        facts["model"] = str(OmegaConf.select(recorded, "model.name"))
        facts["data"] = str(OmegaConf.select(recorded, "data._target_"))
        quantizer = OmegaConf.select(recorded, "quant.quantizer")
        facts["quantizer"] = str(quantizer or "none: full precision")
    for key, name in FACTS.items():
        if metrics.get(key) is not None:
            value = metrics[key]
            facts[name] = f"{value:,}" if key in ("params", "macs") else str(value)
    packages = (f"{name} {version(name)}" for name in ("dqnet", "torch", "torchvision", "timm"))
    facts["report made with"] = f"Python {platform.python_version()}, {', '.join(packages)}"
    text = config.read_text(encoding="utf-8") if config.exists() else ""
    return Provenance(run.resolve().name, command, text, facts)
