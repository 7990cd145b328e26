"""Several processes make the run that one process makes."""

import json
from types import SimpleNamespace

import pytest
import torch
from several import several
from tiny import same

from dqnet.errors import UserError
from dqnet.runtime.devices import Device
from dqnet.training.learner import Learner

FORMS = {
    "dynamic": ["data.val_fraction=0.25", "loss.target_bits=2.5"],
    "lsq, averaged": ["quant=lsq", "trainer.ema=0.9"],
    "pact, sampled": ["quant=pact", "quant.choice_gradient=sampled", "optim.clip_grad=0.5"],
    "controller of its own, dropout": [
        "quant.controller.kind=separate",
        "quant.controller.dropout=0.3",
        "loss=mean_width",
    ],
    "float": ["quant=none"],
    "static": ["quant=lsq", "quant.widths=[3]"],
    "gradients of 6 bits": ["quant.gradient_bits=6"],
}


@pytest.fixture
def shared(run, tmp_path):
    """``shared("key=value", ...)``: the runs of two processes, each with a folder of its own.

    So it is seen who wrote and who read what.
    """

    def start(*overrides, name="run"):
        results = several(lambda rank: vars(run(*overrides, folder=tmp_path / f"{name}-{rank}")))
        for result in results:
            if isinstance(result, Exception):
                raise result
        return [SimpleNamespace(**result) for result in results]

    return start


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").open()]


def numbers(epoch):
    return {k: v for k, v in epoch.items() if k != "seconds" and v is not None}


@pytest.fixture
def double(monkeypatch):
    """In single precision sums of another order round one activation in a million to another code.

    From then on two runs are different ones. In double precision that does not happen here.
    """
    place, images = Device.place, Device.images
    monkeypatch.setattr(Device, "place", lambda self, model: place(self, model).double())
    monkeypatch.setattr(Device, "images", lambda self, batch: images(self, batch).double())


@pytest.mark.parametrize("form", FORMS)
def test_curve_is_that_of_one_process(run, shared, double, form):
    settings = *FORMS[form], "trainer.epochs=2", "optim.lr=0.02"
    alone, together = run(*settings).metrics, metrics(shared(*settings)[0].folder)
    assert len(alone) == 2
    for one, other in zip(alone, together, strict=True):
        assert numbers(other) == pytest.approx(numbers(one), rel=1e-6)


def test_without_common_norms_all_processes_measure_the_same_network(shared):
    runs = shared("trainer.sync_batch_norm=false", "trainer.epochs=2", "trainer.ema=0.9")
    first, second = ({**run.summary, "seconds": 0} for run in runs)
    assert first == second
    assert first["images"] == 60


def test_only_the_main_process_writes(shared):
    main, other = shared("quant=none")
    assert main.text and not other.text
    written = {path.name for path in main.folder.iterdir()}
    assert written == {"metrics.jsonl", "best.pt", "last.pt", "summary.json"}
    assert not list(other.folder.iterdir())


def test_continued_run_is_read_by_the_main_process_for_all(shared):
    settings = "trainer.epochs=2", "trainer.checkpoint_steps=3"
    whole = shared(*settings, name="whole")[0]
    step = Learner.step

    def seven(learner, update, *batch):
        return step(learner, update, *batch) if update < 7 else 1 / 0

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Learner, "step", seven)
        shared(*settings)
    continued = shared(*settings)[0]
    assert "1 of 2 and 3 of 4 steps" in continued.text
    weights = (torch.load(r.folder / "last.pt", weights_only=True) for r in (continued, whole))
    assert same(*(content["model"] for content in weights))
    assert same(*({**r.summary, "seconds": 0} for r in (continued, whole)))


def test_another_number_of_processes_may_continue(run, shared, tmp_path, double):
    settings = "trainer.epochs=2", "optim.lr=0.02"
    alone = run(*settings).metrics
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        step = Learner.step
        patch.setattr(Learner, "step", lambda a, n, *b: step(a, n, *b) if n < 6 else 1 / 0)
        shared(*settings)
    continued = run(*settings, folder=tmp_path / "run-0")
    assert "after epoch 1 of 2" in continued.text
    for one, other in zip(alone, continued.metrics, strict=True):
        assert numbers(other) == pytest.approx(numbers(one), rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.batch_size=61"], "data.batch_size=61 is not a multiple of the 2 processes"),
        (["trainer.device=cuda:0"], "trainer.device 'cuda:0'"),
    ],
)
def test_a_mistake_is_one_in_every_process(run, tmp_path, settings, message):
    for error in several(lambda rank: run(*settings, folder=tmp_path / "run")):
        assert isinstance(error, UserError)
        assert message in str(error)
