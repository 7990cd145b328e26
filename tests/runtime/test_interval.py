"""When a checkpoint is due."""

import time
from dataclasses import replace

import pytest

from dqnet.errors import UserError
from dqnet.runtime.interval import CheckpointInterval

SECONDS_PER_STEP = 20


@pytest.mark.parametrize(
    "steps, minutes, due",
    [
        (4, None, [4, 8, 12]),
        (None, 1, [3, 6, 9, 12]),
        (2, 1, [2, 4, 6, 8, 10, 12]),
        (5, 1, [3, 6, 9, 12]),
        (None, None, []),
    ],
)
def test_whichever_comes_first(config, monkeypatch, steps, minutes, due):
    now = 0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    interval = CheckpointInterval(
        replace(config().trainer, checkpoint_steps=steps, checkpoint_minutes=minutes)
    )
    seen = []
    for step in range(1, 13):
        now += SECONDS_PER_STEP
        if interval.step():
            seen.append(step)
            interval.restart()
    assert seen == due


@pytest.mark.parametrize("key, value", [("checkpoint_steps", 0), ("checkpoint_minutes", -1)])
def test_out_of_range(config, key, value):
    with pytest.raises(UserError, match=f"trainer.{key} {value} must be above 0, or null"):
        CheckpointInterval(config(f"trainer.{key}={value}").trainer)
