"""torchrun starts several processes of what is made for one."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_evaluation_is_refused_in_one_line(tmp_path):
    """Every process would measure all images, and the parts be put together."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "eval.py"]
    ended = subprocess.run(
        [sys.executable, *command, "checkpoint=nowhere", f"output={tmp_path / 'out'}"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 1
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert errors == ["error: eval.py is one process: start it with python, not torchrun"]
    assert not (tmp_path / "out").exists()
