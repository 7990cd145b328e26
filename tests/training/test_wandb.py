"""Weights & Biases without account or network."""

import signal

import pytest
import wandb

from dqnet.config import LoggerConfig, ReportConfig
from dqnet.errors import UserError
from dqnet.runtime.stop import Stopped
from dqnet.training.learner import Learner

OFFLINE = "logger=wandb", "logger.mode=offline"


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_API_KEY", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    yield
    wandb.finish()


def test_offline_run_lies_below_the_run_folder(run):
    result = run(*OFFLINE)
    (folder,) = (result.folder / "wandb").glob("offline-run-*")
    assert folder.name.endswith(result.checkpoint()["wandb_id"])
    assert list(folder.glob("run-*.wandb"))
    assert wandb.run is None


def test_run_after_one_that_failed_is_a_run_of_its_own(run, tmp_path):
    with pytest.raises(UserError, match="the loss is not finite"):
        run(*OFFLINE, "quant=none", "optim.lr=1e30", folder=tmp_path / "failed")
    (failed,) = (tmp_path / "failed/wandb").glob("offline-run-*")
    result = run(*OFFLINE, folder=tmp_path / "next")
    (folder,) = (tmp_path / "next/wandb").glob("offline-run-*")
    assert folder.name.endswith(result.checkpoint()["wandb_id"])
    assert not failed.name.endswith(result.checkpoint()["wandb_id"])


def test_report_goes_to_the_run_that_was_trained(run, measure, monkeypatch):
    trained = run(*OFFLINE)
    logged = {}
    monkeypatch.setattr(
        "dqnet.report.page.wandb.log_report",
        lambda run, folder: logged.update(id=run.id, page=(folder / "report/index.html").exists()),
    )
    logger = LoggerConfig(name="wandb", mode="offline")
    measure(trained.folder, report=ReportConfig(name="html"), logger=logger)
    assert logged == {"id": trained.checkpoint()["wandb_id"], "page": True}
    assert wandb.run is None


def test_refusal_is_a_users_error(run, tmp_path, monkeypatch):
    def refuse(**kwargs):
        raise wandb.errors.UsageError("no API key")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(UserError, match="wandb could not start: no API key"):
        run(*OFFLINE, folder=tmp_path / "run")


# A run that is continued


class Server:
    """What W&B has been told, by step; it forgets what a killed process had not sent."""

    def __init__(self, monkeypatch):
        self.history, self.ids = {}, []
        monkeypatch.setattr(wandb, "init", self.init)

    def init(self, **arguments):
        self.ids.append(arguments["id"])
        return RunOfServer(self, arguments)


class RunOfServer:
    def __init__(self, server, arguments):
        self.history = server.history
        self.id = arguments["id"] or "new"
        self.step = max(self.history, default=-1) + 1
        self.dir = f"{arguments['dir']}/wandb/offline-run-1-{self.id}/files"
        self.summary = {}

    def log(self, record, step, commit):
        assert commit and step == record["epoch"] >= self.step
        self.history[step] = record

    def finish(self, exit_code=0):
        pass


@pytest.fixture
def interrupted(run, tmp_path, monkeypatch):
    """A run of three epochs that ended in the third; ``(folder, server)``."""
    server = Server(monkeypatch)
    with monkeypatch.context() as patch:
        step = Learner.step

        def killed(learner, update, *args):
            if update == 10:
                raise KeyboardInterrupt
            return step(learner, update, *args)

        patch.setattr(Learner, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            run(*OFFLINE, "trainer.epochs=3", folder=tmp_path / "run")
    return tmp_path / "run", server


@pytest.mark.parametrize("lost", [(), (1,), (0, 1)], ids=["nothing", "last", "all"])
def test_epochs_that_wandb_lost_are_told_again_and_no_others(run, interrupted, lost):
    folder, server = interrupted
    told = dict(server.history)
    for epoch in lost:
        del server.history[epoch]
    continued = run(*OFFLINE, "trainer.epochs=3", folder=folder)
    assert server.ids == [None, "new"]
    assert sorted(server.history) == [0, 1, 2]
    for epoch, metrics in enumerate(continued.metrics):
        record = server.history[epoch]
        assert {key: record[key] for key in metrics} == metrics
        assert sum(record["bit_flops_per_image"].histogram) == 60
        assert sum(record["widths/layer2.0.conv1"].histogram) == 60
    for epoch in (0, 1):
        assert server.history[epoch].keys() == told[epoch].keys()


def test_epoch_logged_but_not_saved_is_told_once(run, interrupted):
    """Killed between the log and the checkpoint, the epoch is run again; W&B knows its step."""
    folder, server = interrupted
    server.history[2] = {"epoch": 2}
    run(*OFFLINE, "trainer.epochs=3", folder=folder)
    assert server.history[2] == {"epoch": 2}


def test_offline_files_of_a_killed_start_are_replaced(run, interrupted):
    folder, _ = interrupted
    for name in ("offline-run-0-new", "offline-run-1-new", "offline-run-0-other"):
        (folder / "wandb" / name).mkdir(parents=True)
    run(*OFFLINE, "trainer.epochs=3", folder=folder)
    left = {path.name for path in (folder / "wandb").iterdir()}
    assert left == {"offline-run-1-new", "offline-run-0-other"}


def test_run_that_is_stopped_is_closed_with_its_status(run, tmp_path, monkeypatch):
    Server(monkeypatch)
    closed = []
    monkeypatch.setattr(RunOfServer, "finish", lambda self, exit_code=0: closed.append(exit_code))

    def stopped(learner, *args):
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr(Learner, "step", stopped)
    with pytest.raises(Stopped):
        run(*OFFLINE, folder=tmp_path)
    assert closed == [143]
