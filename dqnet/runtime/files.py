"""Files that are either the old one or the new one, whatever happens while they are written.

Of several processes only the main one writes; in the others these functions do nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dqnet.errors import UserError
from dqnet.processes import is_main

#: of the name of a file that is being written
_UNFINISHED = ".tmp"


def write_atomically(
    path: Path, write: Callable[[Path], None], previous: Path | None = None
) -> None:
    """Lets ``write`` fill a file beside ``path``, then puts it in its place in one step.

    Args:
        path: the file.
        write: given a path, writes the content there.
        previous: where the file that was there goes, once the new one is safe on the disk.

    Raises:
        UserError: if the system refuses, as when the disk is full; what was there is still there.
    """
    if not is_main():
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_UNFINISHED}")
    try:
        with _refusal_in_one_line(path):
            write(temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            if previous is not None and path.exists():
                path.replace(previous)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Removes what a process that was killed has left half written; no other may be at work."""
    for path in folder.glob(f".*{_UNFINISHED}"):
        remove(path)


def remove(path: Path) -> None:
    """Removes a file, if it is there."""
    if is_main():
        path.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Adds a line to a file; it is on the disk when this returns.

    Raises:
        UserError: if the system refuses; the file may then end with a part of the line.
    """
    if not is_main():
        return
    with _refusal_in_one_line(path), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes ``content`` as indented JSON, atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes ``text``, atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8") and None)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def _refusal_in_one_line(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} could not be written: {error.strerror or error}") from error
