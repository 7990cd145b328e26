"""Run folders below others."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dqnet.errors import UserError
from dqnet.report.compare.export_runs import exported_name
from dqnet.report.runs import Run, read_run


def find_runs(folders: Iterable[Path]) -> tuple[list[Run], list[Path]]:
    """Searches folders, and all that is below them, for runs.

    Returns:
        The finished runs, and the folders of unfinished ones: with a checkpoint or metrics, and no
        ``summary.json``. A folder that is reached twice counts once, and so does a run beside an
        exported copy of it. The training that a search makes in its run's folder is none of its
        own.

    Raises:
        UserError: for a folder that does not exist, or a finished run that cannot be read.
    """
    finished: dict[tuple[str, bytes], Path] = {}
    unfinished: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder")
        for summary in sorted(folder.rglob("summary.json")):
            if _is_part(summary.parent):
                continue
            name = exported_name(summary.resolve().parent.name)
            finished.setdefault((name, summary.read_bytes()), summary.parent)
        for trace in sorted([*folder.rglob("metrics.jsonl"), *folder.rglob("last.pt")]):
            if not (trace.parent / "summary.json").exists() and not _is_part(trace.parent):
                unfinished.setdefault(trace.parent.resolve(), trace.parent)
    return [read_run(folder) for folder in finished.values()], list(unfinished.values())


def _is_part(folder: Path) -> bool:
    """Whether it is in the folder of a run, and has no record itself."""
    return (folder.parent / ".hydra").is_dir() and not (folder / ".hydra").is_dir()
