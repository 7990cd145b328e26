"""eval.py's figures are training's, on whichever part and with whichever batch size."""

import json

import pytest
import torch

from dqnet.config import ReportConfig
from dqnet.errors import UserError
from dqnet.evaluation import evaluate_checkpoint as evaluation


@pytest.fixture(scope="module")
def trained(run):
    """Two epochs with a validation part; best.pt and last.pt may differ."""
    return run("data.val_fraction=0.25", "trainer.epochs=2", "trainer.ema=0.9")


@pytest.mark.parametrize("batch_size", [None, 7])
def test_validation_figures_are_those_of_the_last_epoch(trained, measure, tmp_path, batch_size):
    batches = evaluation.EvalConfig().data
    batches.batch_size = batch_size
    path = trained.folder / "last.pt"
    figures = measure(path, split="val", output=str(tmp_path), data=batches)
    last = trained.metrics[-1]
    for key in ("top1", "top5", "bit_flops", "bit_flops_std", "distinct_routings"):
        assert figures[key] == last[f"val_{key}"]
    assert figures["loss"] == pytest.approx(last["val_loss"], rel=1e-6)
    assert figures["mean_width"] == last["mean_width"]


def test_files_stand_beside_the_checkpoint_unless_told_otherwise(trained, measure, tmp_path):
    figures = measure(trained.folder / "last.pt")
    assert json.loads((trained.folder / "eval.json").read_text()) == figures
    assert (trained.folder / "per_sample.csv").exists()
    measure(trained.folder / "last.pt", output=str(tmp_path / "a/b"))
    for name in ("eval.json", "per_sample.csv"):
        assert (tmp_path / "a/b" / name).read_bytes() == (trained.folder / name).read_bytes()


def test_checkpoint_is_enough(trained, measure, tmp_path):
    moved = tmp_path / "moved.pt"
    moved.write_bytes((trained.folder / "best.pt").read_bytes())
    assert measure(moved)["loss"] == trained.summary["loss"]


def test_epoch_is_that_of_the_metrics(run, measure, tmp_path):
    trained = run("quant=none", "trainer.epochs=3", "data.val_fraction=0.25")
    for name, epoch in (("best.pt", trained.summary["best_epoch"]), ("last.pt", 2)):
        figures = measure(trained.folder / name, split="val", output=str(tmp_path))
        (line,) = (m for m in trained.metrics if m["epoch"] == figures["epoch"])
        assert figures["epoch"] == epoch
        assert figures["loss"] == pytest.approx(line["val_loss"], rel=1e-6)
    untrained = run("quant=none", "trainer.epochs=0").folder
    assert measure(untrained)["epoch"] is None


def test_float_weights_are_not_needed_again(run, measure, tmp_path):
    weights = tmp_path / "float.pt"
    weights.write_bytes((run("quant=none").folder / "best.pt").read_bytes())
    tuned = run(f"model.checkpoint_path={weights}")
    weights.unlink()
    assert measure(tuned.folder)["loss"] == tuned.summary["loss"]


def test_figures_do_not_depend_on_the_random_state(trained, measure, tmp_path):
    torch.manual_seed(5)
    first = measure(trained.folder, output=str(tmp_path))
    torch.manual_seed(6)
    assert measure(trained.folder, output=str(tmp_path)) == first


def test_other_number_of_classes(run, measure, image_folder):
    images = "data=imagefolder", "data.size=8", "trainer.epochs=0", "data.workers=0"
    trained = run(*images, f"data.root={image_folder('cat', 'dog')}")
    other = evaluation.EvalConfig().data
    other.root = str(image_folder("cat", "dog", "eel"))
    with pytest.raises(UserError, match=r"classifies 2 classes, the data in .*images-3 has 3"):
        measure(trained.folder, data=other)
    assert not (trained.folder / "eval.json").exists()


def test_no_validation_part(run, measure):
    folder = run("data.val_fraction=0").folder
    with pytest.raises(UserError, match=r"kept no validation part .*: use split=test"):
        measure(folder, split="val")


@pytest.mark.parametrize(
    "path, changes, message",
    [
        ("best.pt", {"split": "tset"}, "unknown split 'tset'; did you mean 'test'"),
        ("none.pt", {}, "none.pt does not exist"),
        ("none.pt", {"report": ReportConfig("html", ["no/run"])}, "no/run/summary.json cannot"),
        ("metrics.jsonl", {}, "not a readable PyTorch checkpoint"),
    ],
)
def test_errors(trained, measure, path, changes, message):
    with pytest.raises(UserError, match=message):
        measure(trained.folder / path, **changes)


def test_no_checkpoint_named():
    with pytest.raises(UserError, match=r"name a checkpoint: python eval\.py checkpoint="):
        evaluation.evaluate_checkpoint(evaluation.EvalConfig())
