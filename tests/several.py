"""Several processes on this machine, as torchrun would start them, but forked: no imports anew."""

import io
import os
import socket
import sys
import traceback

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def several(body, count=2):
    """What ``body(rank)`` returns in each of ``count`` processes, or the error that it raises."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    context = mp.get_context("fork")
    pipes, children = [], []
    for rank in range(count):
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(body, rank, count, port, sender))
        child.start()
        sender.close()
        pipes.append(receiver)
        children.append(child)
    results = []
    for receiver in pipes:
        assert receiver.poll(120), "a process hangs"
        results.append(torch.load(io.BytesIO(receiver.recv_bytes()), weights_only=False))
    for child in children:
        child.join()
    return results


def connected(body, count=2):
    """The same for a body that expects connected processes, and raises nothing."""

    def run(rank):
        dist.init_process_group("gloo")
        return body(rank)

    results = several(run, count)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def _child(body, rank, count, port, sender):
    os.environ.update(
        TORCHELASTIC_RUN_ID="test",
        TORCHELASTIC_RESTART_COUNT="0",
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(count),
        LOCAL_WORLD_SIZE=str(count),
        MASTER_ADDR="localhost",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    try:
        result = body(rank)
    except Exception as error:
        traceback.print_exc()
        result = error
    buffer = io.BytesIO()
    torch.save(result, buffer)
    sender.send_bytes(buffer.getvalue())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # pytest's own end is not this process's
