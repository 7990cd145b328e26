"""torchrun starts all processes again when one of them is lost, and the run goes on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from rich.console import Console
from several import several

from dqnet.cli import to_object
from dqnet.config import TrainConfig
from dqnet.training.train import train

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = (
    "trainer.epochs=1",
    "trainer.checkpoint_steps=3",
    "trainer.device=cpu",
    "trainer.progress=false",
    "data.batch_size=128",
)


def torchrun(folder, log):
    """Training by two processes, which may be started anew twice."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.Popen(
        [
            sys.executable,
            *command,
            "--max_restarts=2",
            "train.py",
            *SETTINGS,
            f"hydra.run.dir={folder}",
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
    )


def workers(agent):
    """The processes that train, in the order of their ranks."""
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()

    def is_worker(pid):
        return b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes()

    return sorted(int(pid) for pid in children if is_worker(pid))


def steps_done(folder):
    """How many steps of the first epoch ``last.pt`` holds; 0 without one."""
    try:
        return torch.load(folder / "last.pt", weights_only=True)["step"]
    except FileNotFoundError:  # or between the renaming of two
        return 0


def metrics(folder):
    return [json.loads(line) | {"seconds": 0} for line in (folder / "metrics.jsonl").open()]


def uninterrupted(folder):
    """The same run by two processes that nobody kills."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = to_object(TrainConfig, compose("train", [*SETTINGS]))
    for result in several(lambda rank: train(config, folder, Console(quiet=True))):
        assert isinstance(result, dict), result


@pytest.mark.slow
def test_lost_worker(tmp_path):
    whole, killed, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log.txt"
    agent = torchrun(killed, log)
    while steps_done(killed) < 3:
        assert agent.poll() is None, log.read_text()
        time.sleep(0.01)
    os.kill(workers(agent)[1], signal.SIGKILL)
    assert agent.wait(240) == 0, log.read_text()
    continued = r"continuing \S+last.pt after epoch 0 of 1 and [369] of 11 steps"
    assert re.search(continued, log.read_text())

    uninterrupted(whole)
    assert metrics(killed) == metrics(whole)
    ours, theirs = (torch.load(f / "last.pt", weights_only=True)["model"] for f in (killed, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)
