"""Errors a user can cause: one line that says what is wrong and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Wrong input from the person at the keyboard; the command line prints it without a traceback.

    A ``ValueError``, so that library callers need not know this class to catch it.
    """


def unknown_name(kind: str, name: str, valid: Iterable[str], hint: str = "") -> UserError:
    """The error for a name that does not exist, with up to three of the nearest valid ones."""
    valid = sorted(valid)
    nearest = difflib.get_close_matches(str(name), valid, n=3, cutoff=0.4)
    if nearest:
        advice = f"did you mean {' or '.join(repr(n) for n in nearest)}?"
    elif len(valid) <= 20:
        advice = f"valid: {', '.join(valid)}"
    else:
        advice = f"there are {len(valid)} valid ones, such as {valid[0]!r}"
    return UserError(f"unknown {kind} {name!r}; {advice}{' ' + hint if hint else ''}")
