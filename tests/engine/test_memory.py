"""Freed memory is kept, so that a second round of the same allocations takes no page faults."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

CODE = """
import resource, sys, torch
from dqnet.engine.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def round():
    kept = [torch.ones(2_000_000) for _ in range(4)]
round(); round()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    round()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc only")
def test_the_second_round_takes_no_page_faults():
    faults = {
        mode: int(subprocess.check_output([sys.executable, "-c", CODE, mode]))
        for mode in ("default", "keep")
    }
    assert faults["keep"] < 100 < faults["default"]
