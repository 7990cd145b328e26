"""Standard output that takes every character, whatever the encoding of the terminal or log file."""

from __future__ import annotations

import codecs
import io
import sys

#: what is printed where an encoding lacks a character: as wide, so that tables stay aligned
_NEAREST = str.maketrans("░▒▓█±−·×→≤≥λ…", ".:+#~-*x><>l.")
_HANDLER = "dqnet.nearest"
#: what Python does unless told otherwise, the latter in the C locale
_DEFAULTS = ("strict", "surrogateescape")


def take_every_character() -> None:
    """Makes printing a character that the encoding lacks print its nearest one, or ``?``.

    By default that is an error, and a run of days would end at its last table because a cluster's
    log files are ASCII. Another choice, made by ``PYTHONIOENCODING``, is kept.
    """
    codecs.register_error(_HANDLER, _nearest)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in _DEFAULTS:
        sys.stdout.reconfigure(errors=_HANDLER)


def _nearest(error: UnicodeError) -> tuple[bytes, int]:
    """Handles an encoding error; bytes of a file's name that are not text stay as they are."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_NEAREST)
    known = "".join(c if c.isascii() or "\udc80" <= c <= "\udcff" else "?" for c in text)
    return known.encode("ascii", "surrogateescape"), error.end
