"""Processes that torchrun has started again find each other, not those that were lost."""

import os
import time

import torch
import torch.distributed as dist
from several import several

from dqnet.processes import connect


def start(agent, late):
    """What two processes of one start receive, of which one comes a second later."""

    def body(rank):
        os.environ.update(TORCHELASTIC_USE_AGENT_STORE="True", MASTER_PORT=str(agent.port))
        time.sleep(rank == late)
        connect("gloo")
        total = torch.tensor(rank + 1)
        dist.all_reduce(total)
        return int(total)

    return several(body)


def test_second_start_with_the_agents_store_of_the_first():
    agent = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    assert start(agent, late=0) == [3, 3]  # process 1 waits for the port
    assert start(agent, late=0) == [3, 3]  # and reads the one of the first start
    assert start(agent, late=1) == [3, 3]


def test_without_an_agents_store():
    def body(rank):
        connect("gloo")
        return dist.get_world_size()

    assert several(body) == [2, 2]
