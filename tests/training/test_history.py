"""The losses of an epoch survive a checkpoint unchanged."""

import pytest
import torch

from dqnet.training.history import LossHistory


def filled(length, steps):
    history = LossHistory(length)
    for i in range(steps):
        history.append({"loss": torch.tensor(1 / (i + 3)), "penalty": torch.tensor(i / 7)})
    return history


@pytest.mark.parametrize("cut", [0, 1, 4, 5])
def test_continued_history_is_that_of_an_epoch_in_one_piece(cut):
    continued = LossHistory(5, filled(5, cut).state_dict())
    assert len(continued) == cut
    for i in range(cut, 5):
        continued.append({"loss": torch.tensor(1 / (i + 3)), "penalty": torch.tensor(i / 7)})
    assert continued.means() == filled(5, 5).means()


def test_continued_history_goes_to_where_the_next_losses_are():
    """A checkpoint is read to the CPU; a loss on the GPU would be waited for at every step."""
    history = LossHistory(5, filled(5, 2).state_dict())
    history.append({name: torch.zeros((), device="meta") for name in ("loss", "penalty")})
    assert history._values.device.type == "meta"


def test_means_are_those_of_the_steps_done():
    losses = torch.tensor([1 / 3, 1 / 4], dtype=torch.float32)
    assert filled(9, 2).means()["loss"] == losses.double().mean().item()


def test_state_holds_the_steps_done_and_nothing_else():
    state = filled(1000, 2).state_dict()
    assert {name: values.shape for name, values in state.items()} == {"loss": (2,), "penalty": (2,)}
    assert all(v.untyped_storage().nbytes() == 16 for v in state.values())


def test_no_steps_no_state():
    assert LossHistory(5).state_dict() == {}
    assert len(LossHistory(5, {})) == 0
