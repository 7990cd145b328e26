"""One line about an error, however many processes meet it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch.distributed as dist

from dqnet.processes import launched

#: for the process that reports to do so before the others end
TIMEOUT = timedelta(seconds=10)


@contextmanager
def reported_once() -> Iterator[bool]:
    """Around the report of an error: yields whether it is this process that makes it.

    torchrun ends all processes as soon as one has ended, so the first to fail reports and the
    others wait until it has. They may fail before they are connected with each other: they agree
    through torchrun's own store.
    """
    store = _torchruns_store()
    if store is None:
        yield True
    elif store.add("reporters", 1) == 1:
        yield True
        store.set("reported", "")
    else:
        yield False
        with suppress(dist.DistError):  # the one that was to report is gone
            store.wait(["reported"], TIMEOUT)


def lost_process(error: Exception) -> bool:
    """Whether an error means that another process of this run has ended."""
    if launched() == 1 or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def _torchruns_store() -> dist.Store | None:
    if launched() == 1:
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = dist.TCPStore(address, port, is_master=False, timeout=TIMEOUT)
    except RuntimeError:  # torchrun has ended
        return None
    return dist.PrefixStore(f"dqnet/{launched('TORCHELASTIC_RESTART_COUNT')}", store)
