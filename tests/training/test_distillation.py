"""A run that also learns from the float network which it starts from."""

import json

import pytest
import torch
from several import several
from tiny import assert_same_run, cut_off

from dqnet.data import load_data
from dqnet.errors import UserError
from dqnet.runtime.devices import Device
from dqnet.training.build import create_float_model
from dqnet.training.learner import Learner
from dqnet.training.weights import load_float_weights

DYNAMIC = ("quant.widths=[2,3,4]", "quant.static_width=3")


@pytest.fixture(scope="module")
def start(run):
    """``model.checkpoint_path=`` a trained float network, as typed."""
    return f"model.checkpoint_path={run('quant=none').folder / 'best.pt'}"


def learner(config):
    splits = load_data(config.data)
    return Learner(config, Device(config.trainer), splits, 4), splits


def test_teacher_is_the_network_as_it_was_at_the_start(config, start):
    learning, splits = learner(config(*DYNAMIC, start, "loss.distillation=1"))
    images, labels = torch.randn(12, *splits.image_shape), torch.arange(12) % 10
    float_model = create_float_model(learning.config.model, 10, 1)
    load_float_weights(float_model, learning.config.model.checkpoint_path)
    expected = float_model.eval()(images)
    torch.testing.assert_close(learning.teacher(images), expected)
    learning.model.train()
    terms = Learner.step(learning, 0, images, labels)
    torch.testing.assert_close(learning.teacher(images), expected)
    assert terms["distillation"] > 0


@pytest.mark.parametrize("form", [DYNAMIC, ("quant=lsq", "quant.widths=[3]"), ("quant=none",)])
def test_student_comes_nearer_to_its_teacher(run, start, form):
    settings = *form, start, "trainer.epochs=4", "optim.lr=0.02"
    taught = run(*settings, "loss.distillation=5").metrics
    distances = [epoch["train_distillation"] for epoch in taught]
    assert distances[-1] < distances[0]
    alone = run(*settings).metrics
    assert "train_distillation" not in alone[0]
    assert taught[-1]["train_loss"] != alone[-1]["train_loss"]


def test_with_a_teacher_a_run_begins_as_without(config, start):
    """Its random numbers too, so that the two can be compared."""
    taught, alone = (
        learner(config(*DYNAMIC, start, f"loss.distillation={weight}"))[0] for weight in (1, 0)
    )
    assert alone.teacher is None
    for name, value in alone.model.state_dict().items():
        assert torch.equal(value, taught.model.state_dict()[name]), name
    one, other = (learning.state_dict()["random"] for learning in (taught, alone))
    assert repr(one) == repr(other)


def test_continues_as_if_nothing_had_happened(run, start, tmp_path):
    settings = *DYNAMIC, start, "loss.distillation=1", "trainer.epochs=2"
    whole = run(*settings)
    cut_off(run, 5, *settings, "trainer.checkpoint_steps=3", folder=tmp_path / "run")
    again = run(*settings, "trainer.checkpoint_steps=3", folder=tmp_path / "run")
    assert "continuing" in again.text
    assert_same_run(again, whole, but_for=("config", "previous"))


def test_several_processes_learn_from_the_same_teacher(run, start, tmp_path, monkeypatch):
    place, images = Device.place, Device.images
    monkeypatch.setattr(Device, "place", lambda self, model: place(self, model).double())
    monkeypatch.setattr(Device, "images", lambda self, batch: images(self, batch).double())
    settings = *DYNAMIC, start, "loss.distillation=1", "optim.lr=0.02"
    alone = run(*settings).metrics[0]["train_distillation"]
    # Of what they return only plain values can be sent.
    several(lambda rank: run(*settings, folder=tmp_path / str(rank)).summary)
    (epoch,) = map(json.loads, (tmp_path / "0/metrics.jsonl").open())
    assert epoch["train_distillation"] == pytest.approx(alone, rel=1e-6)


def test_without_a_trained_network_there_is_no_teacher(run, tmp_path):
    message = r"loss.distillation needs a trained float network .*model.checkpoint_path=FILE"
    with pytest.raises(UserError, match=message):
        run("loss.distillation=1", folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()
