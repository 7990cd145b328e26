"""How the processes that torchrun starts find each other, the second time as well as the first."""

from __future__ import annotations

import os
import socket
import time
from datetime import timedelta

import torch.distributed as dist

from dqnet.processes import launched

#: until a process that does not find the others gives up
PATIENCE = timedelta(minutes=10)
_PORT = "dqnet/port"


def connect(backend: str) -> None:
    """Connects the processes of this start, through a store that the first of them serves.

    torchrun's agent offers a store of its own, which outlives the processes. After a restart the
    lost processes' addresses are still in it, and whoever reads before they are overwritten waits
    for the dead (https://github.com/pytorch/pytorch/issues/135712; the count of restarts is no
    remedy, as each machine's agent has its own). The agent's store therefore tells one thing only,
    the port of process 0's store, and a port that nobody answers is one of an earlier start: its
    processes have ended before torchrun starts others.

    Args:
        backend: as for ``torch.distributed.init_process_group``.

    Raises:
        OSError, torch.distributed.DistError: if the others do not come within ``PATIENCE``.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        dist.init_process_group(backend)
        return
    host = os.environ["MASTER_ADDR"]
    agent = dist.TCPStore(host, int(os.environ["MASTER_PORT"]), timeout=PATIENCE)
    if launched("RANK") == 0:
        store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=PATIENCE)
        agent.set(_PORT, str(store.port))
    else:
        store = _store_of_first(host, agent)
    dist.init_process_group(
        backend, store=store, rank=launched("RANK"), world_size=launched("WORLD_SIZE")
    )


def _store_of_first(host: str, agent: dist.TCPStore) -> dist.TCPStore:
    deadline = time.monotonic() + PATIENCE.total_seconds()
    while True:
        port = int(agent.get(_PORT))
        try:
            # A TCPStore that nobody answers prints pages before it says so.
            socket.create_connection((host, port), timeout=5).close()
            return dist.TCPStore(host, port, timeout=PATIENCE)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
