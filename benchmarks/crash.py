"""Kills training with SIGKILL at random moments, and measures whether its memory grows.

python -m benchmarks.crash                                   # 24 kills, 2,000 steps; 15 minutes
python -m benchmarks.crash --kills 3 --steps 200             # a first look
python -m benchmarks.crash --out results/crash.json

Every run is the command `python train.py …` with a checkpoint after every step. It is killed four
times, each time some time after a checkpoint (which one, and how long after, are drawn), and then
left to end. All that it leaves is compared with what an uninterrupted run leaves: metrics, summary,
and every tensor of its checkpoints, bit for bit. Only the seconds may differ.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import machine, resident_bytes

ROOT = Path(__file__).resolve().parents[1]
#: one of everything that has a state: noise, dropout, temperature, momentum, average, best epoch
KILLED = (
    "trainer.epochs=2",
    "trainer.checkpoint_steps=1",
    "trainer.ema=0.9",
    "quant.controller.dropout=0.1",
    "quant.controller.tau_end=0.5",
    "data.batch_size=64",
    "data.val_fraction=0.1",
)
#: steps of an epoch of the digits in batches of 32
STEPS_PER_EPOCH = 1437 // 32
WARM_UP_STEPS = 200
KILLS_PER_RUN = 4
POLL_SECONDS = 0.005


@dataclass(frozen=True)
class Kill:
    """One SIGKILL.

    Attributes:
        run: which run it hit.
        epoch: how many epochs the checkpoint that it left was after; ``None`` without one.
        step: and how many steps.
        writing: whether it left a file half written.
    """

    run: int
    epoch: int | None
    step: int | None
    writing: bool


def start(folder: Path, *overrides: str) -> subprocess.Popen[bytes]:
    """A training run as a user starts it, on a CPU and one core."""
    command = [sys.executable, "train.py", *overrides, f"hydra.run.dir={folder}"]
    quiet = ["trainer.device=cpu", "trainer.progress=false"]
    return subprocess.Popen(
        [*command, *quiet],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )


class Watch:
    """Sees from outside how often a run has written its last checkpoint."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "last.pt"
        self._seen = self._version()
        self.count = 0

    def look(self) -> int:
        """Checkpoints since the beginning; to be called often."""
        version = self._version()
        if version not in (None, self._seen):
            self._seen = version
            self.count += 1
        return self.count

    def _version(self) -> int | None:
        try:
            return self._path.stat().st_mtime_ns
        except FileNotFoundError:  # or between the renaming of two
            return None


def uninterrupted(folder: Path) -> tuple[int, float]:
    """How many checkpoints a run writes, and the seconds from one to the next."""
    process, watch = start(folder, *KILLED), Watch(folder)
    began = time.monotonic()
    while process.poll() is None:
        if watch.look() == 0:
            began = time.monotonic()
        time.sleep(POLL_SECONDS)
    if process.returncode:
        sys.exit(f"train.py ended with status {process.returncode}")
    return watch.count, (time.monotonic() - began) / watch.count


def kill_and_finish(
    folder: Path, number: int, checkpoints: int, interval: float, moments: random.Random
) -> list[Kill]:
    """Starts and kills a run ``KILLS_PER_RUN`` times, and lets it end; fewer if it ends before."""
    kills: list[Kill] = []
    while True:
        process, watch = start(folder, *KILLED), Watch(folder)
        if len(kills) < KILLS_PER_RUN:
            count = moments.randrange(checkpoints // KILLS_PER_RUN + 1)
            delay = moments.uniform(0, interval)
            while process.poll() is None and watch.look() < count:
                time.sleep(POLL_SECONDS)
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        status = process.wait()
        if status == 0:
            return kills
        if status != -signal.SIGKILL:
            sys.exit(f"train.py ended with status {status} after {len(kills)} kills: {folder}")
        kills.append(Kill(number, *_position(folder), any(folder.glob(".*.tmp"))))


def is_identical(folder: Path, other: Path) -> bool:
    """Whether two run folders hold the same, but for the seconds."""
    return _content(folder) == _content(other)


def memory_growth(folder: Path, steps: int) -> dict[str, Any]:
    """Resident memory of a process that trains, evaluates and saves, epoch by epoch.

    Args:
        folder: of the run.
        steps: after the warm-up.
    """
    warm_up = -(-WARM_UP_STEPS // STEPS_PER_EPOCH)
    epochs = warm_up + -(-steps // STEPS_PER_EPOCH)
    process = start(folder, f"trainer.epochs={epochs}", "trainer.checkpoint_steps=20")
    metrics, megabytes = folder / "metrics.jsonl", []
    while process.poll() is None:
        done = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        if done > len(megabytes):
            megabytes.append(resident_bytes("VmRSS", process.pid) / 2**20)
        time.sleep(POLL_SECONDS)
    if process.returncode or len(megabytes) != epochs:
        sys.exit(f"train.py ended with status {process.returncode}: {folder}")
    before, after = megabytes[warm_up - 1], megabytes[warm_up:]
    return {
        "steps": (epochs - warm_up) * STEPS_PER_EPOCH,
        "warm_up_steps": warm_up * STEPS_PER_EPOCH,
        "growth_percent": 100 * (after[-1] / before - 1),
        "largest_growth_percent": 100 * (max(after) / before - 1),
        "resident_mib_by_epoch": [round(value, 1) for value in megabytes],
    }


def _position(folder: Path) -> tuple[int | None, int | None]:
    for name in ("last.pt", "previous.pt"):
        if (folder / name).exists():
            content = torch.load(folder / name, weights_only=True)
            return content["epoch"], content["step"]
    return None, None


def _content(folder: Path) -> dict[str, Any]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    files: dict[str, Any] = {
        "files": sorted(p.name for p in folder.iterdir()),
        "metrics": [json.loads(line) for line in lines],
        "summary": json.loads((folder / "summary.json").read_text(encoding="utf-8")),
    }
    for name in ("last.pt", "best.pt"):
        files[name] = torch.load(folder / name, weights_only=True)
    return _comparable(files)


def _comparable(value: Any) -> Any:
    """Without seconds, and with tensors as their bytes: == then means the same bits."""
    if isinstance(value, dict):
        return {key: _comparable(v) for key, v in value.items() if key != "seconds"}
    if isinstance(value, list | tuple):
        return [_comparable(v) for v in value]
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes()
    return value


def main() -> None:
    """Kills, compares, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=24, help="at least so many")
    parser.add_argument("--steps", type=int, default=2000, help="of the memory's measurement")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    arguments = parser.parse_args()

    kills: list[Kill] = []
    identical = runs = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checkpoints, interval = uninterrupted(folder / "whole")
        moments = random.Random(arguments.seed)
        while len(kills) < arguments.kills:
            own = kill_and_finish(folder / str(runs), runs, checkpoints, interval, moments)
            same = is_identical(folder / str(runs), folder / "whole")
            identical += len(own) * same
            kills += own
            runs += 1
            writing = sum(kill.writing for kill in kills)
            print(
                f"{len(kills)} kills, {identical} identical ({runs} runs, {writing} of the kills "
                "while a file was written)",
                flush=True,
            )
        growth = memory_growth(folder / "memory", arguments.steps)
    print(
        f"resident memory after {growth['steps']} steps: {growth['growth_percent']:+.2f} % "
        f"(at most {growth['largest_growth_percent']:+.2f} %)"
    )
    content = {
        "machine": machine(),
        "command": " ".join(sys.argv[1:]),
        "overrides": KILLED,
        "kills": len(kills),
        "identical": identical,
        "moments": [asdict(kill) for kill in kills],
        "memory": growth,
    }
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    sys.exit(identical != len(kills))


if __name__ == "__main__":
    main()
