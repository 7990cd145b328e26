"""A loss that is not finite stops the run and says where that began."""

import math
from types import SimpleNamespace

import pytest
import torch
from tiny import assert_same_run

from dqnet.errors import UserError
from dqnet.training.checkpoint import load_checkpoint
from dqnet.training.history import LossHistory
from dqnet.training.learner import Learner
from dqnet.training.objective import Objective
from dqnet.training.run_state import NotFiniteError, RunState

SETTINGS = ("trainer.epochs=3", "trainer.checkpoint_steps=3", "optim.schedule=constant")
LAYER = "layer2.0.conv2"


@pytest.fixture
def harm(monkeypatch):
    """``harm(update, how)``: calls ``how(layer)`` at one update, each time that it is made."""

    def arrange(update, how):
        step = Learner.step

        def harmed(learner, number, *args):
            if number == update:
                how(learner.model.backbone.get_submodule(LAYER))
            return step(learner, number, *args)

        monkeypatch.setattr(Learner, "step", harmed)

    return arrange


def undefined_weight(layer):
    layer.weight.data[0, 0, 0, 0] = math.nan


def infinite_weight(layer):
    """Of which the quantizer makes a finite one."""
    layer.weight.data[0, 0, 0, 0] = math.inf


def undefined_gradient(layer):
    """The slope of a square root at zero is infinite, and 0 · ∞ is not a number."""
    layer.register_forward_hook(lambda _, inputs, output: output + 0 * (0 * output).sqrt())


@pytest.mark.parametrize(
    "how, where",
    [
        (undefined_weight, f"in the output of {LAYER}"),
        (infinite_weight, f"{LAYER}.weight after the update"),
        (undefined_gradient, f"in the gradient of {LAYER}'s output"),
    ],
)
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_step_layer_and_checkpoint_are_named(run, tmp_path, harm, how, where, precision):
    harm(7, how)
    with pytest.raises(UserError) as caught:
        run(*SETTINGS, f"trainer.precision={precision}", folder=tmp_path)
    message = str(caught.value)
    assert "at step 8 (step 4 of epoch 2), learning rate 0.05, " in message
    assert where in message
    # Saved at step 3, the end of the epoch, step 3 of the next one.
    assert f"{tmp_path}/last.pt, after step 7, is the last good checkpoint" in message
    assert len(message.splitlines()) == 1
    kept = load_checkpoint(tmp_path / "last.pt")
    assert (kept["epoch"], kept["step"]) == (1, 3)
    assert all(v.isfinite().all() for v in kept["model"].values() if v.is_floating_point())


def test_first_step_of_a_run(run, tmp_path, harm):
    harm(0, undefined_weight)
    with pytest.raises(UserError, match=r"at step 1 \(step 1 of epoch 1\).*no checkpoint yet"):
        run(*SETTINGS, folder=tmp_path)
    assert not list(tmp_path.glob("*.pt"))


def test_loss_that_no_layer_is_to_blame_for(run, tmp_path, monkeypatch):
    terms = Objective.terms

    def broken(self, *args):
        found = terms(self, *args)
        return found | {"loss": found["loss"] + math.inf}

    monkeypatch.setattr(Objective, "terms", broken)
    with pytest.raises(UserError, match="the loss's term loss, each layer's output being finite"):
        run("quant.widths=[3]", folder=tmp_path)


def test_loss_that_recovers_can_be_continued(run, tmp_path):
    """As on a GPU, whose sums are not the same each time."""
    with pytest.MonkeyPatch.context() as patch:
        calls = []
        step = Learner.step

        def once(learner, update, *args):
            calls.append(update)
            if update == 7 and calls.count(7) == 1:
                infinite_weight(learner.model.backbone.get_submodule(LAYER))
            return step(learner, update, *args)

        patch.setattr(Learner, "step", once)
        with pytest.raises(UserError, match="did not happen again: the same command goes on"):
            run(*SETTINGS, folder=tmp_path)
        # Known to be bad after update 7, the epoch's last; saved before it.
        assert calls == [*range(8), 7]
    assert_same_run(run(*SETTINGS, folder=tmp_path), run(*SETTINGS))


def test_values_are_not_looked_at_in_every_step(run, monkeypatch):
    """Each look waits for the device."""
    looks = []
    monkeypatch.setattr(RunState, "check_finite", lambda run: looks.append(run))
    run("trainer.epochs=2", "data.batch_size=4")  # 2 x 60 steps
    assert len(looks) == 2 * (60 // 50 + 1)


def test_weights_are_checked_though_the_loss_is_still_finite():
    class Learner:
        def __init__(self, value):
            self.finite = value

        def is_finite(self):
            return self.finite

    def check(finite):
        RunState.check_finite(SimpleNamespace(learner=Learner(finite), history=history))

    history = LossHistory(3)
    history.append({"loss": torch.tensor(1.0)})
    check(True)
    with pytest.raises(NotFiniteError):
        check(False)
    history.append({"loss": torch.tensor(math.inf)})
    with pytest.raises(NotFiniteError):
        check(True)
