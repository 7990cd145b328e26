from __future__ import annotations

import logging
import runpy
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from dqnet import cli

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small are slowed down by a second thread, on a busy machine manyfold."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Result:
    """What a command left: exit status, standard output, lines of standard error."""

    def __init__(self, status, out, err):
        self.status, self.out, self.err = status, out, err.splitlines()


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """``command("train.py", ...)``: the script as ``python train.py`` runs it, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")  # restored afterwards
    monkeypatch.delenv(cli.TRACEBACK, raising=False)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def run(script, *arguments):
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        capfd.readouterr()
        status, last = 0, ""
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as error:
            # As Python does it: a text goes to standard error and means 1.
            status = error.code if isinstance(error.code, int) else 1
            last = error.code if isinstance(error.code, str) else ""
        captured = capfd.readouterr()
        return Result(status, captured.out, captured.err + last)

    yield run
    GlobalHydra.instance().clear()
    for handler in root.handlers[:]:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
