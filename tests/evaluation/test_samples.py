"""samples.npz against the data set and the files that stand beside it."""

import csv
import shutil

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from omegaconf import OmegaConf
from tiny import ROUTED

from dqnet.config import ReportConfig
from dqnet.data import load_data
from dqnet.errors import UserError
from dqnet.evaluation.samples import read_samples, write_samples
from dqnet.evaluation.thumbnails import MAX_SIDE, Thumbnails, samples_of
from dqnet.measurement import Evaluation


@pytest.fixture
def written(monkeypatch):
    """What the report was asked for; it is replaced by a stand-in that draws nothing."""
    calls = []
    monkeypatch.setattr(
        "dqnet.report.page.html.write_report",
        lambda folder, baselines=(): (
            calls.append((folder, baselines)) or folder / "report/index.html"
        ),
    )
    return calls


@pytest.mark.parametrize("kind", ["dynamic", "float"])
def test_samples_are_those_of_the_other_files(run, measure, config, written, tmp_path, kind):
    quant = "quant=none" if kind == "float" else "quant.widths=[2,3,4]"
    folder = run(quant).folder
    baseline = tmp_path / "baseline"
    shutil.copytree(folder, baseline)
    (baseline / ".hydra").mkdir()
    OmegaConf.save(OmegaConf.structured(config(quant)), baseline / ".hydra/config.yaml")
    report = ReportConfig("html", [str(baseline)])
    figures = measure(folder, output=str(tmp_path), report=report, split="test")
    assert [(f, list(map(str, b))) for f, b in written] == [(tmp_path, [str(baseline)])]

    samples = read_samples(tmp_path / "samples.npz")
    with (tmp_path / "per_sample.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    test = load_data(config().data).test
    assert samples.images.dtype == np.uint8
    assert np.array_equal(samples.images, test.images.permute(0, 2, 3, 1).numpy())
    assert samples.labels.tolist() == [int(row["label"]) for row in rows]
    assert samples.predictions.tolist() == [int(row["prediction"]) for row in rows]
    assert samples.top5_classes[:, 0].tolist() == samples.predictions.tolist()
    in_top5 = (samples.top5_classes == samples.labels[:, None]).any(1)
    assert 100 * in_top5.mean() == pytest.approx(figures["top5"])
    confidence = [float(row["confidence"]) for row in rows]
    np.testing.assert_allclose(samples.top5_probs[:, 0], confidence, rtol=1e-6)
    assert (np.diff(samples.top5_probs) <= 0).all()
    assert samples.class_names.tolist() == [str(digit) for digit in range(10)]

    layers = [] if kind == "float" else list(ROUTED)
    assert samples.layers.tolist() == layers
    widths = samples.widths[samples.chosen] if layers else samples.chosen
    assert widths.tolist() == [[int(row[name]) for name in layers] for row in rows]
    assert samples.scores.shape == (len(rows), len(layers), max(1, len(samples.widths)))
    best = np.take_along_axis(samples.scores, samples.chosen[..., None].astype(int), 2)
    assert (best[..., 0] == samples.scores.max(2)).all()


#: on both sides of the largest value of 16-bit integers, without and with a sign
MANY = (0, 32_767, 32_768, 65_535, 65_536, 81_312)


def write_many_classes(path):
    """Writes ``samples.npz`` of a float model that knows 81,313 classes, one image each."""
    labels = torch.tensor(MANY)
    count = len(labels)
    evaluation = Evaluation(
        labels=labels,
        top_classes=labels[:, None],
        top_probabilities=torch.ones(count, 1, dtype=torch.float64),
        losses=torch.zeros(count),
        cost=None,
        mean_widths=None,
        chosen=torch.zeros(count, 0, dtype=torch.int64),
        scores=torch.zeros(count, 0, 1),
        widths=(),
        layers=(),
    )
    thumbnails = Thumbnails([0.0], [1.0])
    list(thumbnails.of([(torch.zeros(count, 1, 4, 4), labels)]))
    write_samples(path, samples_of(evaluation, thumbnails, []))


def test_classes_beyond_sixteen_bits(tmp_path):
    write_many_classes(tmp_path / "samples.npz")
    samples = read_samples(tmp_path / "samples.npz")
    assert samples.labels.tolist() == samples.predictions.tolist() == list(MANY)
    assert samples.top5_classes[:, 0].tolist() == list(MANY)


def test_without_a_report_there_are_no_samples(run, measure, tmp_path):
    measure(run().folder, output=str(tmp_path))
    assert not (tmp_path / "samples.npz").exists()


def test_thumbnails_of_large_images_keep_their_proportions():
    images = torch.rand(2, 3, 100, 200, generator=torch.Generator().manual_seed(0))
    mean, std = [0.2, 0.3, 0.4], [0.5, 0.6, 0.7]
    thumbnails = Thumbnails(mean, std)
    labels = torch.zeros(2, dtype=torch.int64)
    passed = list(thumbnails.of([(TF.normalize(images, mean, std), labels)]))
    assert len(passed) == 1
    oracle = TF.resize(images, [MAX_SIDE // 2, MAX_SIDE], antialias=True)
    pictures = thumbnails.array().transpose(0, 3, 1, 2)
    assert pictures.shape == (2, 3, MAX_SIDE // 2, MAX_SIDE)
    np.testing.assert_allclose(pictures, (oracle * 255).numpy(), atol=0.51)


def test_unknown_report(run, measure):
    with pytest.raises(UserError, match=r"unknown report\.name 'htm'; did you mean 'html'"):
        measure(run().folder, report=ReportConfig("htm"))
