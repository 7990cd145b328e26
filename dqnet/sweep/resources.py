"""Shares of one machine for runs beside each other: cores, and a GPU each where there are any."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dqnet.errors import UserError


@dataclass(frozen=True)
class Resources:
    """What one run at a time may use: core numbers, and a name as CUDA_VISIBLE_DEVICES has it."""

    cores: tuple[int, ...]
    gpu: str | None

    @property
    def environment(self) -> dict[str, str]:
        """The variables that say so to libraries; they count when the process starts."""
        threads = str(len(self.cores))
        variables = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        return variables if self.gpu is None else variables | {"CUDA_VISIBLE_DEVICES": self.gpu}

    def enter(self, log: Path) -> None:
        """Binds this process to the cores, and sends what it prints to the end of ``log``.

        From then on it also ends when its parent does: joblib's workers would stay for ever.
        """
        if hasattr(os, "sched_setaffinity"):  # Linux
            os.sched_setaffinity(0, self.cores)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            os.dup2(file.fileno(), sys.stdout.fileno())
            os.dup2(file.fileno(), sys.stderr.fileno())
        threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()


def share(count: int, jobs: int, cores: Sequence[int], gpus: Sequence[str]) -> list[Resources]:
    """Splits cores evenly, GPUs round robin.

    Args:
        count: how many runs at a time, at least 1; or -1: one per GPU, without GPUs one per core.
        jobs: no more shares than these are made.
        cores: at least one.
        gpus: may be empty.

    Raises:
        UserError: if ``count`` is 0.
    """
    if count == 0:
        raise UserError("hydra.launcher.n_jobs=0: a number from 1, or -1 for one per GPU or core")
    if count < 0:
        count = len(gpus) or len(cores)
    count = min(count, jobs)
    shares = []
    for i in range(count):
        own = cores[i * len(cores) // count : (i + 1) * len(cores) // count]
        shares.append(
            Resources(
                cores=tuple(own) or (cores[i % len(cores)],),
                gpu=gpus[i % len(gpus)] if gpus else None,
            )
        )
    return shares


def machine() -> tuple[list[int], list[str]]:
    """The cores and GPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        cores = sorted(os.sched_getaffinity(0))
    else:
        cores = list(range(os.cpu_count() or 1))
    gpus = [str(i) for i in range(torch.cuda.device_count())]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return cores, visible.split(",")[: len(gpus)] if visible else gpus


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
