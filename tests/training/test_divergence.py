"""A loss that is not finite stops the run and says where that began."""

import math

import pytest
from tiny import assert_same_run

from dqnet.errors import UserError
from dqnet.training.checkpoint import load_checkpoint
from dqnet.training.learner import Learner
from dqnet.training.run_state import RunState

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
    "how, what",
    [
        (undefined_weight, "the loss"),
        (infinite_weight, "a weight"),
        (undefined_gradient, "a weight"),
    ],
)
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_step_and_checkpoint_are_named(run, tmp_path, harm, how, what, precision):
    harm(7, how)
    with pytest.raises(UserError) as caught:
        run(*SETTINGS, f"trainer.precision={precision}", folder=tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{what} is not finite: ")
    assert "at step 8 (step 4 of epoch 2), learning rate 0.05; " in message
    assert f"{tmp_path}/last.pt is the last good checkpoint" in message
    assert len(message.splitlines()) == 1
    kept = load_checkpoint(tmp_path / "last.pt")
    # Saved at step 3, the end of the epoch, step 3 of the next one.
    assert (kept["epoch"], kept["step"]) == (1, 3)
    assert all(v.isfinite().all() for v in kept["model"].values() if v.is_floating_point())


def test_first_step_of_a_run(run, tmp_path, harm):
    harm(0, undefined_weight)
    with pytest.raises(UserError, match=r"at step 1 \(step 1 of epoch 1\).*there is no checkpoint"):
        run(*SETTINGS, folder=tmp_path)
    assert not list(tmp_path.glob("*.pt"))


def test_run_that_failed_can_be_continued(run, tmp_path):
    """On a GPU, whose sums are not the same each time, it may go well."""
    with pytest.MonkeyPatch.context() as patch:
        step = Learner.step

        def harmed(learner, update, *args):
            if update == 7:
                infinite_weight(learner.model.backbone.get_submodule(LAYER))
            return step(learner, update, *args)

        patch.setattr(Learner, "step", harmed)
        with pytest.raises(UserError, match="a weight is not finite"):
            run(*SETTINGS, folder=tmp_path)
    assert_same_run(run(*SETTINGS, folder=tmp_path), run(*SETTINGS))


def test_values_are_not_looked_at_in_every_step(run, monkeypatch):
    """Each look waits for the device."""
    looks = []
    monkeypatch.setattr(RunState, "check_finite", lambda run: looks.append(run))
    run("trainer.epochs=2", "data.batch_size=4")  # 2 x 60 steps
    assert len(looks) == 2 * (60 // 50 + 1)
