"""What figures show, against plain Python over the same rows."""

import math
from statistics import mean

import numpy as np
import pytest
from evaluations import write_evaluation
from run_folders import write_run

from dqnet.report.page.figures import NAMES, figures_of
from dqnet.report.page.figures.accuracy_by_cost import wilson
from dqnet.report.page.figures.class_widths import class_means
from dqnet.report.page.figures.confidence_by_cost import CELLS, density
from dqnet.report.page.figures.cost_histogram import counts_by_cost
from dqnet.report.page.figures.deciles import deciles
from dqnet.report.page.figures.layer_widths import width_shares
from dqnet.report.page.results import read_results
from dqnet.report.runs import read_run

rng = np.random.default_rng(0)


def test_histogram_counts_every_image_in_its_bin():
    cost = rng.normal(size=200)
    counts, edges = counts_by_cost(cost, 7)
    width = (max(cost) - min(cost)) / 7
    expected = [0] * 7
    for value in cost:
        expected[min(int((value - min(cost)) / width), 6)] += 1
    assert counts.tolist() == expected
    assert edges[0] == min(cost)
    assert edges[-1] == max(cost)


def test_width_shares():
    chosen = rng.choice([0, 1, 2], size=(50, 6))
    shares = width_shares(chosen, 3)
    for layer in range(6):
        column = chosen[:, layer].tolist()
        assert shares[layer].tolist() == [column.count(k) / 50 for k in range(3)]


def test_class_means_and_a_class_without_images():
    labels, widths = rng.choice([0, 1, 3], size=60), rng.choice([2, 4], size=(60, 5))
    means = class_means(labels, widths, 4)
    for c in (0, 1, 3):
        bits = widths[labels == c].ravel().tolist()
        assert means[c] == pytest.approx(mean(bits))
    assert math.isnan(means[2])


def test_deciles_of_different_costs_are_plain_means():
    cost, values = rng.permutation(95).astype(float), rng.random(95)
    pairs = sorted(zip(cost, values, strict=True))
    for part in deciles(cost, values):
        taken, pairs = pairs[: part.images], pairs[part.images :]
        assert part.value == pytest.approx(mean(value for _, value in taken))
        assert (part.least, part.largest) == (taken[0][0], taken[-1][0])
        assert part.middle == pytest.approx(mean(c for c, _ in taken))
    assert not pairs


def test_deciles_of_equal_costs_are_the_mean_over_all_orders():
    cost = np.repeat([1.0, 2.0, 3.0], [13, 30, 17])
    values = np.sort(rng.random(60))  # the order of the data has all to do with the value
    totals = np.zeros(10)
    for _ in range(4000):
        shuffled = rng.permutation(60)
        order = shuffled[np.argsort(cost[shuffled], kind="stable")]
        totals += values[order].reshape(10, 6).mean(1)
    found = [part.value for part in deciles(cost, values)]
    assert found == pytest.approx((totals / 4000).tolist(), abs=0.01)


def test_fewer_images_than_parts():
    assert [part.value for part in deciles(np.array([2.0, 1.0]), np.array([True, False]))] == [0, 1]


@pytest.mark.parametrize("hits, images", [(0, 10), (10, 10), (37, 100), (1, 1)])
def test_wilson_interval_is_where_the_score_test_turns(hits, images):
    share = hits / images
    for bound in wilson(share, images):
        if 1e-9 < bound < 1 - 1e-9:
            score = abs(share - bound) / math.sqrt(bound * (1 - bound) / images)
            assert score == pytest.approx(1.959964, rel=1e-5)
    low, high = wilson(share, images)
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1


def test_density_counts_every_image_once():
    cost, confidence = rng.random(300), rng.random(300)
    counts, costs, confidences = density(cost, confidence)
    assert counts.shape == CELLS
    for i, j in [(0, 0), (3, 7), (CELLS[0] - 1, CELLS[1] - 1)]:
        inside = [
            costs[i] <= x <= costs[i + 1] and confidences[j] <= y <= confidences[j + 1]
            for x, y in zip(cost, confidence, strict=True)
        ]
        assert counts[i, j] == sum(inside)
    assert counts.sum() == 300


def test_figures_fit_the_model(tmp_path):
    baselines = [read_run(write_run(tmp_path / "static"))]

    def names(name, runs=(), **settings):
        results = read_results(write_evaluation(tmp_path / name, **settings).folder)
        return [figure.name for figure in figures_of(results, runs)]

    assert names("dynamic") == [name for name in NAMES if name != "trade_off"]
    assert names("compared", baselines) == list(NAMES)
    assert names("static run", layers=()) == []
    assert names("float run", baselines, layers=(), quantized=False) == ["trade_off"]
    assert names("collapsed", widths=(3,)) == ["layer_widths", "class_widths"]
