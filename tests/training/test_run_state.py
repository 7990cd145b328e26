"""The losses of an epoch survive a checkpoint unchanged, and when one is due."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dqnet.training.run_state import LossHistory, RunState

SECONDS_PER_STEP = 20


def filled(steps):
    history = LossHistory()
    for i in range(steps):
        history.append({"loss": torch.tensor(1 / (i + 3)), "penalty": torch.tensor(i / 7)})
    return history


@pytest.mark.parametrize("cut", [0, 1, 4, 5])
def test_continued_history_is_that_of_an_epoch_in_one_piece(cut):
    continued = LossHistory(filled(cut).state_dict())
    assert len(continued) == cut
    for i in range(cut, 5):
        continued.append({"loss": torch.tensor(1 / (i + 3)), "penalty": torch.tensor(i / 7)})
    assert continued.means() == filled(5).means()


def test_continued_history_goes_to_where_the_next_losses_are():
    """A checkpoint is read to the CPU; a loss on the GPU would be waited for at every step."""
    history = LossHistory(filled(2).state_dict(), "meta")
    history.append({name: torch.zeros((), device="meta") for name in ("loss", "penalty")})
    assert {value.device.type for values in history._terms.values() for value in values} == {"meta"}


def test_means_are_those_of_the_steps_done():
    losses = torch.tensor([1 / 3, 1 / 4], dtype=torch.float32)
    assert filled(2).means()["loss"] == losses.double().mean().item()


def test_state_holds_the_steps_done_and_nothing_else():
    state = filled(2).state_dict()
    assert {name: values.shape for name, values in state.items()} == {"loss": (2,), "penalty": (2,)}
    assert all(v.untyped_storage().nbytes() == 16 for v in state.values())


def test_no_steps_no_state():
    assert LossHistory().state_dict() == {}
    assert len(LossHistory({})) == 0


@pytest.mark.parametrize(
    "place, value, steps", [(0, float("nan"), 0), (2, float("-inf"), 2), (4, float("inf"), 4)]
)
@pytest.mark.parametrize("name", ["loss", "penalty"])
def test_steps_before_the_first_one_that_is_not_finite(place, value, steps, name):
    history = LossHistory()
    for i in range(5):
        terms = {"loss": torch.tensor(1.0), "penalty": torch.tensor(2.0)}
        history.append(terms | ({name: torch.tensor(value)} if i == place else {}))
    assert history.finite_steps() == steps
    assert filled(5).finite_steps() == 5


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
def test_a_checkpoint_by_steps_or_minutes_whichever_comes_first(monkeypatch, steps, minutes, due):
    now = 0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr("dqnet.training.run_state.save_checkpoint", lambda *args: seen.append(step))
    monkeypatch.setattr(RunState, "check_finite", lambda self: None)
    monkeypatch.setattr(RunState, "_content", lambda self: {})
    config = SimpleNamespace(
        trainer=SimpleNamespace(checkpoint_steps=steps, checkpoint_minutes=minutes)
    )
    run = RunState(Path("run"), config, None, None, SimpleNamespace(train=[None]))
    seen = []
    for step in range(1, 13):  # noqa: B007  seen by save_checkpoint
        now += SECONDS_PER_STEP
        run.after_step()
    assert seen == due
