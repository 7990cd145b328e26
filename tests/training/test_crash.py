"""A run that is killed and started again ends, bit for bit, as one that was not."""

import random
import resource
import weakref

import pytest
import torch
from crashing import AtCall, InSave, calls_of, run_and_crash
from tiny import RICH, assert_same_run, cut_off

from dqnet.data.make_shards import make_shards
from dqnet.errors import UserError
from dqnet.training import run_state
from dqnet.training import train as loop
from dqnet.training.learner import Learner

KILLS = 2
EVERY_STEP = "trainer.checkpoint_steps=1"


@pytest.mark.parametrize(
    "name", [pytest.param(own, marks=pytest.mark.slow) if own != "lsq" else own for own in RICH]
)
def test_killed_at_random_moments(run, config, tmp_path, name):
    whole = run(*RICH[name])
    settings = *RICH[name], "trainer.checkpoint_steps=2"
    calls = calls_of(AtCall(0), config(*settings), tmp_path / "counted")
    moments = random.Random(name)
    for _ in range(KILLS):
        crash = AtCall(moments.randrange(1, calls // KILLS))
        assert run_and_crash(crash, config(*settings), tmp_path / "run")
    assert_same_run(run(*settings, folder=tmp_path / "run"), whole, but_for=("config",))


@pytest.mark.parametrize(
    "stage, number",
    [
        *[(stage, number) for stage in ("half", "flushed", "last.pt renamed") for number in (1, 3)],
        ("previous.pt renamed", 3),
    ],
)
def test_killed_while_a_checkpoint_is_written(run, config, tmp_path, stage, number):
    settings = "trainer.epochs=2", EVERY_STEP
    folder = tmp_path / "run"
    assert run_and_crash(InSave(stage, number), config(*settings), folder)
    continued = run(*settings, folder=folder)
    saved = number if stage == "last.pt renamed" else number - 1
    assert (f"after epoch 0 of 2 and {saved} of 4 steps" in continued.text) == (saved > 0)
    assert_same_run(continued, run(*settings))
    assert not list(folder.glob(".*"))


def test_shards_go_on_within_an_epoch(run, image_folder, tmp_path):
    make_shards(image_folder("a", "b", "c"), tmp_path / "shards", shard_size=1e-3)
    data = "data=shards", f"data.root={tmp_path / 'shards'}", "data.batch_size=2", "data.workers=0"
    settings = *data, "trainer.epochs=2", EVERY_STEP
    cut_off(run, 9, *settings, folder=tmp_path / "run")
    continued = run(*settings, folder=tmp_path / "run")
    assert "after epoch 1 of 2 and 3 of 6 steps" in continued.text
    assert_same_run(continued, run(*settings))


@pytest.mark.parametrize(
    "prune", [("magnitude", "prune.until=0.9", "prune.every=1"), ("soft_filters",)]
)
def test_pruning_goes_on_after_a_kill(run, config, tmp_path, prune):
    """Between the best.pt and the last.pt of an epoch: what is zero, and what was set aside."""
    settings = "quant=none", f"prune={prune[0]}", *prune[1:], "trainer.ema=0.9", "trainer.epochs=2"
    assert run_and_crash(InSave("half", 1), config(*settings), tmp_path / "run")
    assert (tmp_path / "run" / "best.pt").exists()
    assert_same_run(run(*settings, folder=tmp_path / "run"), run(*settings))


@pytest.fixture
def half_done(run, tmp_path):
    """A run that was cut off at its sixth of eight steps, each of which was saved."""
    cut_off(run, 6, "trainer.epochs=2", EVERY_STEP, folder=tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("kept", [0, 1000, 0.5, 0.99, None])
def test_damaged_checkpoint_is_replaced_by_the_one_before(run, half_done, kept):
    last, previous = half_done / "last.pt", half_done / "previous.pt"
    content = last.read_bytes()
    if kept is None:  # whole, but no longer what was written
        middle = len(content) // 2
        last.write_bytes(content[:middle] + b"?" * 200 + content[middle + 200 :])
    else:
        last.write_bytes(content[: int(kept * len(content)) if 0 < kept < 1 else kept])
    continued = run("trainer.epochs=2", EVERY_STEP, folder=half_done)
    (warning,) = [line for line in continued.text.splitlines() if line.startswith("warning: ")]
    assert str(last) in warning and str(previous) in warning
    assert "after epoch 1 of 2 and 1 of 4 steps" in continued.text
    assert_same_run(continued, run("trainer.epochs=2", EVERY_STEP))
    assert not previous.exists()


def test_two_damaged_checkpoints_leave_the_one_of_the_best_epoch(run, half_done):
    for name in ("last.pt", "previous.pt"):
        (half_done / name).write_bytes(b"")
    continued = run("trainer.epochs=2", EVERY_STEP, folder=half_done)
    assert f"going back to {half_done}/best.pt" in continued.text
    assert f"continuing {half_done}/best.pt after epoch 1 of 2\n" in continued.text
    assert_same_run(continued, run("trainer.epochs=2", EVERY_STEP))


def test_without_a_whole_checkpoint_all_are_named(run, half_done):
    for name in ("last.pt", "previous.pt", "best.pt"):
        (half_done / name).write_bytes(b"")
    named = r"last\.pt is not .*previous\.pt is not .*best\.pt is not"
    with pytest.raises(UserError, match=named):
        run("trainer.epochs=2", EVERY_STEP, folder=half_done)


VALIDATED = (
    "quant=none",
    "trainer.epochs=3",
    "data.val_fraction=0.25",
    "data.batch_size=20",
    "optim.lr=0.02",
)


def killed_after_best(run, folder, *settings):
    """A run that ends like a killed one between best.pt and last.pt of its second epoch."""
    save = run_state.save_checkpoint

    def interrupted(path, content, *args):
        if path.name == "last.pt" and content["epoch"] == 2:
            raise KeyboardInterrupt
        save(path, content, *args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_state, "save_checkpoint", interrupted)
        run(*VALIDATED, *settings, folder=folder)
    best = torch.load(folder / "best.pt", weights_only=True)
    assert best["best"]["epoch"] == 1, "this run's second epoch is to be its best"


@pytest.mark.parametrize("damaged", [False, True])
def test_best_epoch_and_best_weights_belong_together(run, measure, tmp_path, monkeypatch, damaged):
    """Though the steps after the crash lead elsewhere, as on a GPU: here to a worse network."""
    killed_after_best(run, tmp_path / "run", "trainer.checkpoint_steps=2")
    if damaged:
        (tmp_path / "run/last.pt").write_bytes(b"")
    step = Learner.step

    def elsewhere(learner, *args):
        terms = step(learner, *args)
        for parameter in learner.model.parameters():
            parameter.data.zero_()
        return terms

    monkeypatch.setattr(Learner, "step", elsewhere)
    continued = run(*VALIDATED, "trainer.checkpoint_steps=2", folder=tmp_path / "run")
    best = continued.summary["best_epoch"]
    assert continued.checkpoint("best.pt")["best"] == continued.checkpoint()["best"]
    assert continued.checkpoint("best.pt")["epoch"] == best + 1
    figures = measure(continued.folder, split="val", output=str(tmp_path / "val"))
    assert [m["epoch"] for m in continued.metrics] == [0, 1, 2]
    assert figures["top1"] == continued.metrics[best]["val_top1"]
    assert figures["top1"] == max(m["val_top1"] for m in continued.metrics)


@pytest.mark.parametrize("settings", [(), ("trainer.epochs=2",)])
def test_killed_between_best_and_last_checkpoint(run, tmp_path, settings):
    killed_after_best(run, tmp_path / "run", *settings)
    continued = run(*VALIDATED, *settings, folder=tmp_path / "run")
    assert "best.pt after epoch 2" in continued.text
    assert_same_run(continued, run(*VALIDATED, *settings))


def test_disk_that_refuses_more_leaves_the_checkpoints_as_they_are(run, half_done):
    before = {name: (half_done / name).read_bytes() for name in ("last.pt", "previous.pt")}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"last\.pt could not be written: File too large"):
            run("trainer.epochs=2", EVERY_STEP, folder=half_done)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {name: (half_done / name).read_bytes() for name in before} == before
    assert not list(half_done.glob(".*"))
    assert_same_run(
        run("trainer.epochs=2", EVERY_STEP, folder=half_done),
        run("trainer.epochs=2"),
        but_for=("config",),
    )


def test_position_within_an_epoch_does_not_depend_on_the_checkpoints(run, half_done):
    """The same command with other intervals continues the run."""
    continued = run("trainer.epochs=2", "trainer.checkpoint_minutes=0.001", folder=half_done)
    assert_same_run(continued, run("trainer.epochs=2"), but_for=("config",))


def test_checkpoint_does_not_stay_in_memory(run, half_done, monkeypatch):
    read, weights, alive = loop.read_state, [], []

    def watched(*args):
        path, content = read(*args)
        weights.extend(weakref.ref(value) for value in content["model"].values())
        return path, content

    step = Learner.step

    def looked(*args):
        alive.extend(weight() is not None for weight in weights)
        return step(*args)

    monkeypatch.setattr(loop, "read_state", watched)
    monkeypatch.setattr(Learner, "step", looked)
    run("trainer.epochs=2", EVERY_STEP, folder=half_done)
    assert alive and not any(alive)


def test_batches_that_are_done_are_not_loaded_again(run, half_done, monkeypatch):
    seen = []
    step = Learner.step

    def counted(learner, update, *args):
        seen.append(update)
        return step(learner, update, *args)

    monkeypatch.setattr(Learner, "step", counted)
    run("trainer.epochs=2", EVERY_STEP, folder=half_done)
    assert seen == [6, 7]
