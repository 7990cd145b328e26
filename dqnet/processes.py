"""What the processes of one run, as torchrun starts them, know of each other.

One process is the ordinary case: then every function here returns at once what it was given.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

#: until a process that does not find the others gives up
PATIENCE = timedelta(minutes=10)
#: for the main process to report an error that the others meet too, before torchrun ends them
REPORT_SECONDS = 10
_PORT = "dqnet/port"


def launched(variable: str = "WORLD_SIZE", alone: int = 1) -> int:
    """What torchrun says in a variable, before the processes are connected as well.

    Args:
        variable: by default how many processes it has started.
        alone: the answer if it has not started this one. Clusters set the same variables for
            purposes of their own.
    """
    return int(os.environ[variable]) if "TORCHELASTIC_RUN_ID" in os.environ else alone


def is_main() -> bool:
    """Whether this is the process that writes: files, tables, W&B."""
    return launched("RANK", alone=0) == 0


def reports_late() -> None:
    """Waits in every process but the main one, before it reports an error.

    All processes meet most errors, and torchrun ends them as soon as one has ended: the main one's
    report is then the only one.
    """
    if not is_main():
        time.sleep(REPORT_SECONDS)


def lost_process(error: Exception) -> bool:
    """Whether an error means that another process of this run has ended."""
    if launched() == 1 or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def connect(backend: str) -> None:
    """Connects the processes of this start, through a store that the first of them serves.

    torchrun's agent offers a store of its own, which outlives the processes. After a restart the
    lost processes' addresses are still in it, and whoever reads before they are overwritten waits
    for the dead (https://github.com/pytorch/pytorch/issues/135712; the count of restarts is no
    remedy, as each machine's agent has its own). The agent's store therefore tells one thing only,
    the port of process 0's store, and a port that nobody answers is one of an earlier start: its
    processes have ended before torchrun starts others.

    Raises:
        OSError, torch.distributed.DistError: if the others do not come within :data:`PATIENCE`.
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


def rank() -> int:
    """This process, in ``[0, world_size())``."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes are connected."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gathered(x: Tensor) -> Tensor:
    """Every process's ``[n, ...]``, in their order: ``[world_size · n, ...]``; differentiable.

    A loss that each process computes from gathered tensors is the loss of the global batch, and
    the mean of the processes' gradients, which DDP takes, is its gradient.
    """
    return x if world_size() == 1 else _Gathered.apply(x)


def largest(number: int) -> int:
    """The largest of every process's numbers."""
    if world_size() == 1:
        return number
    box = torch.tensor(number)
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return int(box)


def own_rows(draw: Callable[[int], Tensor], rows: int) -> Tensor:
    """This process's rows of ``draw(rows of all processes)``.

    The processes of a run draw from generators in the same state: an image's random numbers do
    then not depend on how many processes there are. All have the same number of ``rows``.
    """
    return draw(rows * world_size())[rank() * rows : (rank() + 1) * rows]


def gathered_parts(columns: list[Tensor]) -> list[Tensor]:
    """Columns ``[n, ...]`` on the CPU, each process's rows below those of the one before."""
    if world_size() == 1:
        return columns
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, columns)
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def from_main(read: Callable[[], Any]) -> Any:
    """What ``read()`` returns in the main process, for all of them."""
    if world_size() == 1:
        return read()
    box = [read() if is_main() else None]
    dist.broadcast_object_list(box)
    return box[0]


def broadcast_buffers(module: torch.nn.Module) -> None:
    """Gives every process the main one's buffers, such as running statistics."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


@contextmanager
def local_main_first() -> Iterator[None]:
    """One process of each machine runs the body, then its other ones do."""
    first = launched("LOCAL_RANK", alone=0) == 0
    if not first and world_size() > 1:
        dist.barrier()
    yield
    if first and world_size() > 1:
        dist.barrier()


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [x.new_empty(x.shape) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # Each process's loss depends on this part: its gradient is the sum of theirs.
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad.chunk(world_size())[rank()]
