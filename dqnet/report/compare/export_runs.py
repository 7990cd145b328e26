"""Copies of runs small enough to be committed: metrics and configuration, no weights."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dqnet.errors import UserError
from dqnet.report.runs import Run
from dqnet.runtime.files import read_json, write_json

FILES = ("summary.json", "metrics.jsonl", "curve.csv")
RECORDS = ("config.yaml", "overrides.yaml")
#: parts of a run folder's name that hold paths of the machine
PATHS = ("data.root=", "model.checkpoint_path=")
#: a list in eval.json that takes more characters than this is data, not a metric
LONGEST = 1000


def export_runs(runs: Iterable[Run], destination: Path) -> None:
    """Copies what the tables are made from to ``destination/NAME``, one folder for each run.

    NAME is the run folder's own, less the parts that are paths. Absolute paths in the copied
    configuration mean nothing elsewhere: ``data.root`` becomes ``DATA``, any other keeps its last
    two parts (``runs/float/best.pt`` becomes ``float/best.pt``). Long lists in ``eval.json`` are
    left out.

    Raises:
        UserError: if two runs have the same name, before anything is copied.
    """
    names: dict[str, Run] = {}
    for run in runs:
        name = exported_name(run.folder.resolve().name)
        if name in names:
            raise UserError(f"{names[name].folder} and {run.folder} would both be kept as {name}")
        names[name] = run
    for name, run in names.items():
        if run.folder.resolve() != (destination / name).resolve():
            _copy(run.folder, destination / name)


def exported_name(name: str) -> str:
    """A run folder's name without the parts that are paths."""
    kept = ",".join(part for part in name.split(",") if not part.startswith(PATHS))
    return kept or name


def without_paths(content: Any, key: str = "") -> Any:
    """The content of a configuration file with absolute paths replaced."""
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
    for name in FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, destination / name)
    for name, cut in (("eval.json", _without_long_lists), ("cascade.json", None)):
        if (source / name).exists():
            content = read_json(source / name)
            write_json(destination / name, without_paths(cut(content) if cut else content))
    for name in RECORDS:
        record = source / ".hydra" / name
        if record.exists():
            content = OmegaConf.to_container(OmegaConf.load(record))
            OmegaConf.save(OmegaConf.create(without_paths(content)), destination / ".hydra" / name)


def _without_long_lists(content: Any) -> Any:
    if not isinstance(content, dict):
        return content
    return {
        key: _without_long_lists(value)
        for key, value in content.items()
        if not (isinstance(value, list) and len(json.dumps(value)) > LONGEST)
    }
