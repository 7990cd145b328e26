"""Tries every wrong use of the table, and says how many were refused cleanly.

python -m benchmarks.bad_input              # what was not, and the count
python -m benchmarks.bad_input --verbose    # every line that was printed
"""

from __future__ import annotations

import argparse
import os
import runpy
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import torch

from benchmarks.bad_input.case import COMMON, Case
from benchmarks.bad_input.cases import CASES
from benchmarks.bad_input.files import make_files
from benchmarks.bad_input.privileges import permissions_enforced
from benchmarks.bad_input.verdict import faults, names_in

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--verbose", action="store_true", help="print every line")
    verbose = parser.parse_args().verbose
    torch.set_num_threads(1)
    cases = [c for c in CASES if not (c.without_gpu and torch.cuda.is_available())]
    clean = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_files(folder)
        before = names_in(folder)
        for case in cases:
            status, errors = attempt(case, folder)
            found = faults(case, status, errors, before, names_in(folder))
            clean += not found
            if verbose or found:
                print(case, *errors, *(f"  FAULT: {fault}" for fault in found), sep="\n  ")
    print(f"{len(cases)} bad inputs, {clean} refused cleanly")
    sys.exit(0 if clean == len(cases) else 1)


def attempt(case: Case, folder: Path) -> tuple[int, list[str]]:
    """Runs a command in a process of its own; its exit status and lines of standard error.

    The process is a copy of this one, which spares it the seconds that imports take.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            _become(case, folder, errors.fileno())
        _, status = os.waitpid(child, 0)
        errors.seek(0)
        return os.waitstatus_to_exitcode(status), errors.read().splitlines()


def _become(case: Case, folder: Path, errors: int) -> None:
    """The command itself; does not return."""
    status = 70  # of an error that nobody caught
    try:
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(errors, 2)
        sys.argv = [case.script, *COMMON[case.script], *case.arguments.split()]
        with ExitStack() as stack:
            if case.unprivileged:
                stack.enter_context(permissions_enforced())
            runpy.run_path(str(ROOT / case.script), run_name="__main__")
        status = 0
    except SystemExit as end:  # as Python does it: a text goes to standard error and means 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
