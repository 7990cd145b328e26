"""Signals that ask a run to end: it saves first, so that the same command continues it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from dqnet.processes import largest

T = TypeVar("T")

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(KeyboardInterrupt):
    """A run was asked to end.

    Attributes:
        status: what the process ends with, 128 + the signal's number as in a shell.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.status = 128 + number

    def __str__(self) -> str:
        return signal.Signals(self.args[0]).name


class StopRequest:
    """Whether such a signal has come."""

    number: int | None = None

    def until(self, batches: Iterable[T]) -> Iterator[T]:
        """``batches``; raises :class:`Stopped` instead of the next one once a signal has come."""
        iterator = iter(batches)
        while True:
            # Processes that wait for each other have to stop at the same batch.
            number = largest(self.number or 0)
            if number:
                raise Stopped(number)
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except RuntimeError:  # the signal ended the loader's processes first
                if self.number is not None:
                    raise Stopped(self.number) from None
                raise
            yield batch


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Notes the first SIGTERM or SIGINT instead of ending; the second one ends the process at once.

    A handler that somebody else has installed, such as submitit's on a cluster, stays. Outside the
    main thread, which alone receives signals, nothing is noted.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def note(number: int, frame: FrameType | None) -> None:
        request.number = number
        restore()
        # Slurm signals the data loader's processes too, and PyTorch raises an error for each that
        # ends, in the middle of whatever runs here.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def restore() -> None:
        for number in replaced:
            signal.signal(number, before[number])

    defaults = (signal.SIG_DFL, signal.default_int_handler)
    replaced = [number for number, handler in before.items() if handler in defaults]
    for number in replaced:
        signal.signal(number, note)
    try:
        yield request
    finally:
        restore()
