"""Weights & Biases without account or network."""

import pytest
import wandb

from dqnet.config import LoggerConfig, ReportConfig
from dqnet.errors import UserError

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
        "dqnet.report.wandb.log_report",
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
