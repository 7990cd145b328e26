"""Whether a wrong use was refused cleanly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.bad_input.case import Case


def faults(
    case: Case, status: int, errors: Sequence[str], before: set[str], after: set[str]
) -> list[str]:
    """What is wrong with the answer to a wrong use; empty if it was refused cleanly.

    Args:
        case: the wrong use.
        status: of the process.
        errors: the lines of its standard error.
        before: what was in the working folder, by :func:`names_in`.
        after: what is in it now.
    """
    found = [] if status == 1 else [f"exit status {status}, not 1"]
    if len(errors) != 1 or not errors[0].startswith("error: "):
        found.append(f"{len(errors)} lines: {' | '.join(errors)[-300:]}")
    else:
        found += [
            f"{errors[0]!r} does not say {part!r}" for part in case.named if part not in errors[0]
        ]
    if before != after:
        found.append(f"left or removed: {', '.join(sorted(before ^ after))}")
    return found


def names_in(folder: Path) -> set[str]:
    """Every file and folder below one, links not followed."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
