"""A run that is asked to end saves first, ends with 128 + the signal, and can be continued."""

import multiprocessing
import os
import pickle
import signal

import pytest
from tiny import assert_same_run

from dqnet.runtime.stop import Stopped, stop_request
from dqnet.training import run_state
from dqnet.training import train as loop
from dqnet.training.learner import Learner

TWO_EPOCHS = ("trainer.epochs=2", "data.val_fraction=0.25", "data.batch_size=45")
SIGNALS = [signal.SIGTERM, signal.SIGINT]


#: where the functions are that a run calls
PLACES = {"step": Learner, "evaluate": loop, "save_checkpoint": run_state}


def send_in(monkeypatch, name, number, *signals):
    """Sends signals to this process at the ``number``-th call of a function that a run calls."""
    function, calls = getattr(PLACES[name], name), []

    def signalled(*args):
        calls.append(name)
        if len(calls) == number:
            for one in signals:
                os.kill(os.getpid(), one)
        return function(*args)

    monkeypatch.setattr(PLACES[name], name, signalled)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    "place, call, done",
    [
        ("step", 2, "epoch 0 of 2 and 2 of 4"),
        ("step", 8, "epoch 1 of 2 and 4 of 4"),
        ("evaluate", 1, "epoch 0 of 2 and 4 of 4"),
    ],
)
def test_first_signal_saves(run, tmp_path, number, place, call, done):
    with pytest.MonkeyPatch.context() as patch:
        send_in(patch, place, call, number)
        with pytest.raises(Stopped) as stopped:
            run(*TWO_EPOCHS, folder=tmp_path / "run")
    assert stopped.value.status == 128 + number
    continued = run(*TWO_EPOCHS, folder=tmp_path / "run")
    assert f"after {done} steps" in continued.text
    assert_same_run(continued, run(*TWO_EPOCHS))


def test_second_interrupt_ends_at_once(run, tmp_path, monkeypatch):
    send_in(monkeypatch, "step", 2, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as interrupted:
        run(*TWO_EPOCHS, folder=tmp_path)
    assert not isinstance(interrupted.value, Stopped)
    assert not (tmp_path / "last.pt").exists()


def test_second_interrupt_while_saving_leaves_the_checkpoint(run, tmp_path, monkeypatch):
    settings = *TWO_EPOCHS, "trainer.checkpoint_steps=2"
    send_in(monkeypatch, "step", 4, signal.SIGINT)
    send_in(monkeypatch, "save_checkpoint", 2, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(*settings, folder=tmp_path)
    monkeypatch.undo()
    assert "after epoch 0 of 2 and 2 of 4 steps" in run(*settings, folder=tmp_path).text


def test_data_processes_that_end_first_do_not_prevent_it(run, image_folder, tmp_path, monkeypatch):
    """Slurm signals all processes of a job."""
    settings = (
        "data=imagefolder",
        f"data.root={image_folder('a', 'b', 'c')}",
        "data.size=8",
        "data.cache=false",
        "data.batch_size=2",
        "data.workers=1",
    )
    step = Learner.step

    def signalled(learner, update, *args):
        if update == 3:
            for process in multiprocessing.active_children():
                os.kill(process.pid, signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        return step(learner, update, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", signalled)
        with pytest.raises(Stopped):
            run(*settings, folder=tmp_path / "run")
    continued = run(*settings, folder=tmp_path / "run")
    assert "after epoch 0 of 1 and 4 of 6 steps" in continued.text
    assert_same_run(continued, run(*settings))


def test_command_ends_with_the_documented_status(command, monkeypatch):
    settings = "data.batch_size=512", "model.name=resnet20_cifar", "trainer.device=cpu"
    send_in(monkeypatch, "step", 1, signal.SIGTERM)
    result = command("train.py", *settings, "trainer.epochs=1", "hydra.run.dir=run")
    assert result.status == 143
    assert result.err == ["interrupted; the same command continues"]


def test_handlers_are_those_of_before():
    before = [signal.getsignal(number) for number in SIGNALS]
    with stop_request():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_another_ones_handler_stays(monkeypatch):
    def other(number, frame):
        pass

    before = signal.signal(signal.SIGTERM, other)
    try:
        with stop_request():
            assert signal.getsignal(signal.SIGTERM) is other
    finally:
        signal.signal(signal.SIGTERM, before)


def test_it_can_be_sent_between_processes():
    """As joblib does with what ended a sweep's job."""
    stopped = pickle.loads(pickle.dumps(Stopped(signal.SIGTERM)))
    assert (stopped.status, str(stopped)) == (143, "SIGTERM")
