"""Why a run failed: ``error.txt`` in its folder, one line and then the traceback."""

from __future__ import annotations

import traceback
from pathlib import Path

from dqnet.errors import UserError

FILE = "error.txt"


def write_failure(folder: Path, error: BaseException) -> None:
    """Leaves the reason where the run would have left its summary."""
    reason = " ".join(str(error).split())
    if not isinstance(error, UserError):
        reason = f"{type(error).__name__}: {reason}".removesuffix(": ")
    folder.mkdir(parents=True, exist_ok=True)
    account = "".join(traceback.format_exception(error))
    (folder / FILE).write_text(f"{reason}\n\n{account}", "utf-8", "backslashreplace")


def read_failure(folder: Path) -> str | None:
    """The reason, or ``None`` if the run did not fail."""
    path = folder / FILE
    return path.read_text(encoding="utf-8").partition("\n")[0] if path.exists() else None


def clear_failure(folder: Path) -> None:
    """Forgets it: the run is started again."""
    (folder / FILE).unlink(missing_ok=True)
