"""The report in Weights & Biases, without account or network."""

import json

import pytest
import wandb
from evaluations import write_evaluation

from dqnet.report.page import wandb as report_wandb
from dqnet.report.page.html import write_report


@pytest.fixture
def offline(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_API_KEY", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    settings = wandb.Settings(silent=True)
    with wandb.init(mode="offline", dir=tmp_path, settings=settings) as run:
        yield run


def test_gallery_and_figures(tmp_path, offline, monkeypatch):
    monkeypatch.setattr(report_wandb, "LIMIT", 10)
    made = write_evaluation(tmp_path / "run", channels=1)
    write_report(made.folder)
    report_wandb.log_report(offline, made.folder)
    media = next((tmp_path / "wandb").glob("offline-run-*")) / "files/media"
    figures = {path.name.split("_")[0] for path in (media / "images/report").glob("*.png")}
    assert len(figures) == 5
    (table,) = (json.loads(path.read_text()) for path in media.rglob("*.table.json"))
    assert table["columns"][:4] == ["image", "index", "label", "prediction"]
    costs = [row[table["columns"].index("bit_flops")] for row in table["data"]]
    assert len(costs) == 10
    assert costs == sorted(costs)
    for row in table["data"]:
        values = dict(zip(table["columns"], row, strict=True))
        expected = made.rows[values["index"]]
        assert values["correct"] == bool(expected["correct"])
        assert all(values[k] == expected[k] for k in ("bit_flops", "confidence", *LAYERS))


LAYERS = ("layer1.0.conv1", "layer2.0.conv1")
