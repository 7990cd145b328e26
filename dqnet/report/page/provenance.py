"""Which run a report is about."""

from __future__ import annotations

import platform
import shlex
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

PACKAGES = ("dqnet", "torch", "torchvision", "timm")


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
    facts: tuple[tuple[str, str], ...]


def provenance_of(folder: Path, figures: dict[str, Any]) -> Provenance:
    """From ``.hydra/`` in the evaluation's folder, or beside the checkpoint if it is elsewhere."""
    places = [folder]
    if figures.get("checkpoint"):
        places.append(Path(figures["checkpoint"]).parent)
    run = next((place for place in places if (place / ".hydra/config.yaml").exists()), folder)
    return Provenance(
        folder=run.resolve().name,
        command=_command(run / ".hydra/overrides.yaml"),
        config=_text(run / ".hydra/config.yaml"),
        facts=tuple(_facts(run / ".hydra/config.yaml", figures)),
    )


def _facts(path: Path, figures: dict[str, Any]) -> list[tuple[str, str]]:
    facts = []
    if path.exists():
        config = OmegaConf.load(path)
        quant = config.get("quant") or {}
        facts.append(("model", str(OmegaConf.select(config, "model.name"))))
        facts.append(("data", str(OmegaConf.select(config, "data._target_"))))
        facts.append(("quantizer", str(quant.get("quantizer") or "none: full precision")))
    for key in ("seed", "split", "epoch", "checkpoint", "params", "macs"):
        if figures.get(key) is not None:
            value = figures[key]
            facts.append((_NAMES.get(key, key), f"{value:,}" if key in _NAMES else str(value)))
    facts.append(("report made with", ", ".join(_versions())))
    return facts


_NAMES = {"params": "parameters", "macs": "multiply-accumulates"}


def _versions() -> list[str]:
    found = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:  # run from a checkout that is not installed
            continue
    return found


def _command(path: Path) -> str:
    if not path.exists():
        return ""
    overrides = OmegaConf.to_container(OmegaConf.load(path))
    return shlex.join(["python", "train.py", *map(str, overrides)])


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""
