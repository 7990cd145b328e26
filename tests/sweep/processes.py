"""Commands that can be killed, and what their runs left."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Process:
    """``python train.py ARGUMENTS`` in a folder, in a process group of its own."""

    def __init__(self, folder, arguments):
        self.output = folder / "output.txt"
        with self.output.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "train.py"), *arguments],
                cwd=folder,
                env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_for(self, condition):
        """Until ``condition()``; an error if the command ends before."""
        while not condition():
            assert self.process.poll() is None, self.output.read_text()
            time.sleep(0.005)

    def kill(self):
        """``kill -9`` of the whole group."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self):
        """Exit status and output."""
        return self.process.wait(), self.output.read_text()

    def workers(self):
        """Process ids of joblib's workers below it, by their number."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                line = (folder / "cmdline").read_text().split("\0")
            except OSError:  # it has ended meanwhile
                continue
            if parent == self.process.pid and "--process-name" in line:
                name = line[line.index("--process-name") + 1]
                found[int(name.rpartition("-")[2])] = int(folder.name)
        return found


def metrics(folder):
    """The lines of a run's metrics.jsonl; none if there is no such file."""
    path = folder / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def epochs(folder):
    """The numbers of the epochs in it."""
    return [json.loads(line)["epoch"] for line in metrics(folder)]


def times(folder):
    """When each file of a run was written last."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
