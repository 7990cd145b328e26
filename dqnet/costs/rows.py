"""What was measured of layers, as a CSV file: a row for each layer, format or precision."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from dqnet.errors import UserError

#: names, and a number at the end
Rows: TypeAlias = tuple[tuple[Any, ...], ...]


def read_rows(path: str | Path) -> Rows:
    """The rows of a file after its line of names, each with its last field as a number.

    Raises:
        UserError: if it cannot be read, or a row is not like that; it names the file and the line.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            lines = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "it is not a CSV file"
        raise UserError(f"{path} cannot be read: {reason}") from error
    rows = []
    for number, row in enumerate(lines[1:], 2):
        try:
            rows.append((*(part.strip() for part in row[:-1]), float(row[-1])))
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {row[-1]!r} is not a number") from error
    if not rows:
        raise UserError(f"{path} has no rows below its first line, which has the columns' names")
    return tuple(rows)


def checked_rows(rows: Iterable[Sequence[Any]], columns: Sequence[str]) -> Rows:
    """Rows as they are kept: tuples, none there twice, with a last field that is not negative.

    Raises:
        UserError: that names the first row that is wrong.
    """
    kept, seen = [], set()
    for row in rows:
        *names, number = row
        where = ", ".join(map(str, names))
        if len(row) != len(columns):
            raise UserError(f"row {where}, {number} has {len(row)} fields; columns are {columns}")
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise UserError(f"the {columns[-1]} of {where} is {number!r}; it is a number")
        if not (math.isfinite(number) and number >= 0):
            raise UserError(f"the {columns[-1]} of {where} is {number:g}; it must not be negative")
        if tuple(names) in seen:
            raise UserError(f"there are two rows for {where}")
        seen.add(tuple(names))
        kept.append((*map(str, names), float(number)))
    return tuple(kept)


def write_rows(path: str | Path, columns: Sequence[str], rows: Rows) -> None:
    """Writes a file that :func:`read_rows` reads."""
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])
