"""Figures of an evaluation against NumPy, and the CSV against the metrics."""

import csv
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from tiny import ROUTED, STATIC
from torch import nn

from dqnet.measurement import evaluate
from dqnet.training.build import build_model

N = 37


def batches(images, labels, size):
    return list(zip(images.split(size), labels.split(size), strict=True))


def measured(model, images, labels, size=10):
    return evaluate(model, batches(images, labels, size), lambda x: x, nullcontext)


@pytest.fixture
def images():
    return torch.randn(N, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels():
    return torch.randint(10, (N,), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def float_model():
    """``float_model(classes)``: a linear classifier."""

    def build(classes):
        torch.manual_seed(classes)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))

    return build


@pytest.fixture
def routed_model(config):
    torch.manual_seed(0)
    chosen = config("quant.widths=[2,3,4]", "quant.static_width=3")
    return build_model(chosen.model, chosen.quant, 10, (1, 8, 8))


@torch.no_grad()
def logits_of(model, images):
    return model(images).double().numpy()


@pytest.mark.parametrize("size", [N, 10, 1])
def test_accuracies_and_loss(float_model, images, labels, size):
    model = float_model(10)
    metrics = measured(model, images, labels, size).metrics
    logits, y = logits_of(model, images), labels.numpy()
    rank = (logits > logits[np.arange(N), y][:, None]).sum(1)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert metrics["top1"] == 100 * (rank < 1).sum() / N
    assert metrics["top5"] == 100 * (rank < 5).sum() / N
    assert metrics["loss"] == pytest.approx(-log_p[np.arange(N), y].mean(), rel=1e-5)
    assert metrics["images"] == N


def test_predictions_and_confidence_are_those_of_each_image(float_model, images, labels):
    model = float_model(10)
    evaluation = measured(model, images, labels)
    logits = logits_of(model, images)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert evaluation.labels.tolist() == labels.tolist()
    assert evaluation.predictions.tolist() == p.argmax(1).tolist()
    np.testing.assert_allclose(evaluation.confidence, p.max(1), rtol=1e-5)


@pytest.mark.parametrize("classes", [1, 3, 5])
def test_with_five_classes_or_fewer_every_label_is_in_the_top_five(float_model, images, classes):
    assert measured(float_model(classes), images, torch.arange(N) % classes).metrics["top5"] == 100


def test_percentage_is_the_float_nearest_to_the_fraction(float_model, images):
    images = images[:30]
    model = float_model(10)
    right = torch.from_numpy(logits_of(model, images).argmax(1))
    wrong = torch.cat([right[:17], (right[17:] + 1) % 10])
    assert measured(model, images, wrong).metrics["top1"] == 1700 / 30


def test_bit_flops_and_widths(routed_model, images, labels):
    evaluation = measured(routed_model, images, labels)
    with torch.no_grad():
        routing = routed_model.eval()(images).routing.numpy()
    macs = {layer.name: layer.macs for layer in routed_model.layers}
    widths = routing @ np.array([2, 3, 4])
    cost = widths**2 @ np.array([macs[name] for name in ROUTED])
    cost += 9 * sum(macs[name] for name in STATIC)
    metrics = evaluation.metrics
    assert evaluation.cost.tolist() == cost.tolist()
    assert len(np.unique(cost)) > 1
    assert metrics["bit_flops"] == pytest.approx(cost.mean(), rel=1e-12)
    assert metrics["bit_flops_std"] == pytest.approx(cost.std(), rel=1e-12)
    full = 1024 * (macs["conv1"] + macs["linear"])
    assert metrics["bit_flops_total"] == pytest.approx(cost.mean() + full, rel=1e-12)
    assert metrics["mean_width"] == pytest.approx(widths.mean(), rel=1e-12)
    assert metrics["distinct_routings"] == len(np.unique(widths, axis=0))
    counts = {
        name: {str(w): int((column == w).sum()) for w in (2, 3, 4)}
        for name, column in zip(ROUTED, widths.T, strict=True)
    }
    assert metrics["width_counts"] == counts


def test_batch_size_does_not_change_who_gets_which_width(routed_model, images, labels):
    chosen = [measured(routed_model, images, labels, size).chosen for size in (N, 1)]
    assert torch.equal(*chosen)


def test_model_is_left_as_it_was(routed_model, images, labels):
    before = {key: value.clone() for key, value in routed_model.state_dict().items()}
    routed_model.train()
    measured(routed_model, images, labels)
    assert routed_model.training
    assert all(torch.equal(before[k], v) for k, v in routed_model.state_dict().items())
    routed_model.eval()
    measured(routed_model, images, labels)
    assert not routed_model.training


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_has_a_row_per_image(routed_model, images, labels, tmp_path):
    evaluation = measured(routed_model, images, labels)
    evaluation.write_csv(tmp_path / "per_sample.csv")
    rows = read_csv(tmp_path / "per_sample.csv")
    head = ["index", "label", "prediction", "correct", "confidence", "bit_flops"]
    assert list(rows[0]) == [*head, *ROUTED]
    assert [int(row["index"]) for row in rows] == list(range(N))
    assert [int(row["label"]) for row in rows] == labels.tolist()
    assert [int(row["prediction"]) for row in rows] == evaluation.predictions.tolist()
    assert all((row["correct"] == "1") == (row["label"] == row["prediction"]) for row in rows)
    assert [float(row["confidence"]) for row in rows] == evaluation.confidence.tolist()
    assert [float(row["bit_flops"]) for row in rows] == evaluation.cost.tolist()
    widths = [[int(row[name]) - 2 for name in ROUTED] for row in rows]
    assert widths == evaluation.chosen.tolist()


def test_csv_of_a_float_model_has_no_cost_and_no_widths(float_model, images, labels, tmp_path):
    measured(float_model(10), images, labels).write_csv(tmp_path / "per_sample.csv")
    rows = read_csv(tmp_path / "per_sample.csv")
    assert list(rows[0])[-1] == "bit_flops"
    assert {row["bit_flops"] for row in rows} == {""}
