"""Files that root may not read either, for tests of what cannot be read."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

_VERSION = 0x20080522  # of the structure that capset(2) takes
_OVERRIDE_READ_AND_WRITE, _OVERRIDE_READ = 1, 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = tuple((n, ctypes.c_uint32) for n in ("effective", "permitted", "inheritable"))


@contextmanager
def permissions_enforced() -> Iterator[None]:
    """Within it this thread, and those it starts, are bound by permissions, also as root.

    Raises:
        OSError: if the system does not let capabilities be dropped.
    """
    if os.geteuid() != 0:
        yield
        return
    header, sets = _Header(_VERSION, 0), (_Sets * 2)()
    _call("capget", header, sets)
    before = sets[0].effective
    sets[0].effective = before & ~(1 << _OVERRIDE_READ_AND_WRITE | 1 << _OVERRIDE_READ)
    _call("capset", header, sets)
    try:
        yield
    finally:
        sets[0].effective = before
        _call("capset", header, sets)


def _call(name: str, header: _Header, sets: ctypes.Array[_Sets]) -> None:
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    if function(ctypes.byref(header), sets) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
