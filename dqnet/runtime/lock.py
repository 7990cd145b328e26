"""One run at a time per folder."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dqnet.errors import UserError
from dqnet.processes import is_main

LOCK = ".lock"
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def held(folder: Path, wait: bool = True) -> Iterator[None]:
    """Holds a folder, which is made if need be; the system lets go of it when the process dies.

    Jobs may outlive the sweep that started them (on a cluster they do): a sweep started again
    must not write into the folders they still write into.

    Raises:
        UserError: if another process holds the folder and ``wait`` is false.
    """
    if not is_main():  # which holds it for all
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise UserError(f"another process is at work in {folder}") from None
            print(f"another process is at work in {folder}: waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS_HERE:
                raise
        yield
