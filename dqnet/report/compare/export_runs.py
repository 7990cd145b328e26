"""Copies of runs small enough to be committed: metrics and configuration, no weights."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dqnet.errors import UserError
from dqnet.report.runs import Run
from dqnet.runtime.files import read_json, write_json

#: files that are copied as they are, and those in which paths are shortened
FILES = ("summary.json", "metrics.jsonl", "curve.csv", "plan.json", "packed.json")
#: of a cascade that is saved in a run's folder
CASCADE = "cascade/eval.json"
EVALUATIONS = ("eval.json", "cascade.json", CASCADE)
RECORDS = (".hydra/config.yaml", ".hydra/overrides.yaml")
#: parts of a run folder's name that hold paths of the machine
PATHS = ("data.root=", "model.checkpoint_path=")


def export_runs(runs: Iterable[Run], destination: Path) -> None:
    """Copies what the tables are made from to ``destination/NAME``, one folder for each run.

    NAME is the run folder's own, less the parts that are paths. Absolute paths in the copied
    files mean nothing elsewhere: ``data.root`` becomes ``DATA``, any other keeps its last two parts
    (``runs/float/best.pt`` becomes ``float/best.pt``).

    Raises:
        UserError: if two runs have the same name, before anything is copied.
    """
    folders: dict[str, Path] = {}
    for run in runs:
        name = exported_name(run.folder.resolve().name)
        if name in folders:
            raise UserError(f"{folders[name]} and {run.folder} would both be kept as {name}")
        folders[name] = run.folder
    for name, folder in folders.items():
        if folder.resolve() != (destination / name).resolve():
            _copy(folder, destination / name)


def exported_name(name: str) -> str:
    """A run folder's name without the parts that are paths."""
    kept = ",".join(part for part in name.split(",") if not part.startswith(PATHS))
    return kept or name


def without_paths(content: Any, key: str = "") -> Any:
    """The content of a file with absolute paths replaced."""
    if isinstance(content, dict):
        return {name: without_paths(value, name) for name, value in content.items()}
    if isinstance(content, list):
        return [without_paths(value) for value in content]
    if not isinstance(content, str):
        return content
    match = re.fullmatch(r"(?:([\w.+~]+)=)?['\"]?(/[^'\"]*)['\"]?", content)
    if match is None:
        return content
    name, path = match.groups()
    is_data = (name or key).endswith("root")
    short = "DATA" if is_data else "/".join(Path(path).parts[1:][-2:])
    return f"{name}={short}" if name else short


def _copy(source: Path, destination: Path) -> None:
    (destination / ".hydra").mkdir(parents=True, exist_ok=True)
    for name in filter(lambda name: (source / name).exists(), (*FILES, *EVALUATIONS, *RECORDS)):
        if name in FILES:
            shutil.copyfile(source / name, destination / name)
        elif name in EVALUATIONS:
            (destination / name).parent.mkdir(exist_ok=True)
            write_json(destination / name, without_paths(read_json(source / name)))
        else:
            content = without_paths(OmegaConf.to_container(OmegaConf.load(source / name)))
            OmegaConf.save(OmegaConf.create(content), destination / name)
