"""A small study, and comparisons that take no time."""

import pytest
from run_folders import UNIT, write_run

from dqnet.report.compare import __main__ as command


@pytest.fixture
def study(tmp_path):
    """Static and dynamic at 3 bits, two seeds each; static at 2; a float model; one unfinished."""
    runs = tmp_path / "runs"
    write_run(runs / "float", method=None, top1=90.0)
    write_run(runs / "static2", widths=(2,), top1=74.0)
    for seed, (static, dynamic) in enumerate([(80.0, 82.0), (81.0, 84.0)]):
        write_run(runs / f"static3-{seed}", widths=(3,), top1=static, seed=seed)
        write_run(
            runs / f"dynamic3-{seed}",
            widths=(2, 3, 4),
            top1=dynamic,
            seed=seed,
            cost=(9.0 + seed) * UNIT,
            std=UNIT,
            gain=(0.5, 0.1, 0.9) if seed else None,
            # At 5 the mean is 78, at 7 it is 81, at 8 it is 82.
            curve=[(5 * UNIT, 77.0 + 2 * seed), (7 * UNIT, 81.0), (8 * UNIT, 82.0)],
        )
    (runs / "cut").mkdir()
    (runs / "cut" / "metrics.jsonl").touch()
    return runs


@pytest.fixture
def without_figure(monkeypatch):
    """A comparison draws nothing, which is most of its time."""
    monkeypatch.setattr(command, "draw", lambda *_: None)
