"""Training runs in processes of their own that are killed, without a torch import for each.

A fork server imports once; every run is a fork of it that has computed nothing before.
"""

import io
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import torch
from rich.console import Console
from sklearn.datasets import load_digits

from dqnet.data import digits
from dqnet.training.train import train

_PRELOADED = ["torch", "timm", "sklearn.datasets", "dqnet.training.train"]


class AtCall:
    """At the n-th call that Python code makes: anywhere in a run, its files' writing included."""

    def __init__(self, number):
        self.number = number
        self.count = 0

    def install(self):
        def profile(frame, event, argument):
            if event in ("call", "c_call"):
                self.count += 1
                if self.count == self.number:
                    kill()

        sys.setprofile(profile)


class InSave:
    """While the ``number``-th last.pt is written, after a stage of that."""

    def __init__(self, stage, number):
        self.stage = stage
        self.number = number

    def install(self):
        write, replace, fsync = Path.write_bytes, Path.replace, os.fsync
        saves = 0

        def write_bytes(path, content):
            nonlocal saves
            saves += path.name.startswith(".last.pt")
            if saves == self.number and self.stage == "half":
                write(path, content[: len(content) // 2])
                kill()
            return write(path, content)

        def flush(file):
            fsync(file)
            if saves == self.number and self.stage == "flushed":
                kill()

        def rename(path, target):
            replace(path, target)
            if saves == self.number and self.stage == f"{Path(target).name} renamed":
                kill()

        Path.write_bytes, Path.replace, os.fsync = write_bytes, rename, flush


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def calls_of(crash, config, folder):
    """How many calls a run makes that is not killed."""
    receive, send = _context().Pipe(duplex=False)
    _start(config, folder, crash, send).join()
    return receive.recv()


def run_and_crash(crash, config, folder):
    """Runs in a process; returns whether it was killed."""
    process = _start(config, folder, crash)
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def _context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _start(config, folder, crash, send=None):
    process = _context().Process(target=_train, args=(config, folder, crash, send), daemon=True)
    process.start()
    return process


def _train(config, folder, crash, send):
    import tiny  # noqa: F401  registers resnet8_cifar

    torch.set_num_threads(1)
    everything = load_digits()
    everything.images, everything.target = everything.images[:300], everything.target[:300]
    digits.load_digits = lambda: everything
    crash.install()
    train(config, folder, Console(file=io.StringIO()))
    sys.setprofile(None)
    if send is not None:
        send.send(crash.count)
