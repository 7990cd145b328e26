"""Freed memory is kept, so that repeated allocations do not take their page faults again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

CODE = """
import resource, sys, torch
from dqnet.runtime.devices import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def round():
    kept = [torch.ones(2_000_000) for _ in range(4)]
for _ in range(10):
    round()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    round()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

# glibc adapts its threshold to what was freed before, and may keep memory by chance. A threshold
# that is set does not move: then every tensor is returned to the kernel unless it is told not to.
ENVIRONMENT = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc only")
def test_repeated_allocations_do_not_fault_again():
    faults = {
        mode: int(subprocess.check_output([sys.executable, "-c", CODE, mode], env=ENVIRONMENT))
        for mode in ("default", "keep")
    }
    # The heap may still grow by a tensor or two; otherwise each of the 80 is faulted in again.
    assert faults["keep"] < faults["default"] / 20
