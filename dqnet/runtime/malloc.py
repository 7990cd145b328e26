"""Memory that is freed in one training step is there for the next."""

from __future__ import annotations

import ctypes
import ctypes.util

#: names of <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
#: the largest that glibc takes
_LARGEST_MMAP_THRESHOLD = 32 * 2**20
_NEVER_TRIM = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tells the C library to keep freed memory instead of returning it to the kernel.

    A step allocates and frees the same activations again and again. By default glibc hands the
    larger ones back each time, and the next step takes a page fault for every 4 kB of them: tens
    of thousands per step of a small network, a tenth of its time.

    Returns:
        Whether it took effect: not where the C library is another one.
    """
    name = ctypes.util.find_library("c")
    mallopt = getattr(ctypes.CDLL(name), "mallopt", None) if name else None
    if mallopt is None:
        return False
    return bool(
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        and mallopt(_M_TRIM_THRESHOLD, _NEVER_TRIM)
    )
