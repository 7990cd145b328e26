"""Dependencies point one way: what computes knows nothing of reports, and reports read files."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("dqnet.runtime", "dqnet.training", "dqnet.evaluation")
#: of these, what reads and writes files
FILES = {"dqnet.runtime", "dqnet.runtime.files", "dqnet.evaluation", "dqnet.evaluation.samples"}


@pytest.mark.parametrize("room", ROOMS)
def test_nothing_that_computes_knows_of_reports(room):
    sources = (ROOT / room.replace(".", "/")).rglob("*.py")
    assert [path.name for path in sources if "dqnet.report" in path.read_text()] == []


@pytest.mark.parametrize("module", ["page.html", "page.curve", "page.wandb", "compare.__main__"])
def test_a_report_loads_nothing_that_computes(module):
    code = f"import sys, dqnet.report.{module}; print(*sys.modules)"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {name for name in process.stdout.split() if name.startswith(ROOMS)}
    assert loaded <= FILES
