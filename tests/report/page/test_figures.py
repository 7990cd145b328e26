"""What figures show, against plain Python over the same rows."""

import math
import re
from collections import Counter
from statistics import mean

import numpy as np
import pytest
from evaluations import LAYERS, write_evaluation
from run_folders import write_run

from dqnet.report.page.figures import NAMES, figures_of
from dqnet.report.page.figures.by_cost import BINS, CELLS, deciles, wilson
from dqnet.report.page.results import read_results
from dqnet.report.runs import read_run

rng = np.random.default_rng(0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_evaluation(tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(scope="module")
def drawn(made):
    """The axes of each figure, by its name."""
    figures = figures_of(read_results(made.folder), [])
    return {figure.name: figure.canvas.axes[0] for figure in figures}


def tips(axes):
    """The texts of all tooltips."""
    artists = [*axes.patches, *axes.lines]
    return [a.get_gid().removeprefix("tip=") for a in artists if a.get_gid()]


def test_histogram_counts_every_image_in_its_bin(made, drawn):
    cost = [row["bit_flops"] for row in made.rows]
    width = (max(cost) - min(cost)) / BINS
    expected = [0] * BINS
    for value in cost:
        expected[min(int((value - min(cost)) / width), BINS - 1)] += 1
    assert [bar.get_height() for bar in drawn["cost_histogram"].patches] == expected


def test_shares_of_images_at_each_width(made, drawn):
    expected = [
        f"{layer} at {width} bits: {mean(row[layer] == width for row in made.rows):.1%} of the "
        "images"
        for layer in LAYERS
        for width in (2, 3, 4)
    ]
    assert tips(drawn["layer_widths"]) == expected


def test_class_means_leave_out_a_class_without_images(tmp_path):
    made = write_evaluation(tmp_path)
    results = read_results(made.folder)
    results.labels[results.labels == 2] = 1
    widths = {}
    for row, label in zip(made.rows, results.labels, strict=True):
        widths.setdefault(label, []).append(mean(row[layer] for layer in LAYERS))
    expected = [
        f"{results.class_names[label]}: {mean(of):.3f} bits, {len(of)} images"
        for label, of in sorted(widths.items(), key=lambda item: mean(item[1]))
    ]
    assert len(expected) == 3
    (figure,) = (f for f in figures_of(results, []) if f.name == "class_widths")
    assert tips(figure.canvas.axes[0]) == expected


def test_deciles_of_different_costs_are_plain_means():
    cost, values = rng.permutation(95).astype(float), rng.random(95)
    pairs = sorted(zip(cost, values, strict=True))
    for part in deciles(cost, values).itertuples():
        taken, pairs = pairs[: part.images], pairs[part.images :]
        assert part.value == pytest.approx(mean(value for _, value in taken))
        assert (part.least, part.largest) == (taken[0][0], taken[-1][0])
        assert part.mean == pytest.approx(mean(c for c, _ in taken))
    assert not pairs


def test_deciles_of_equal_costs_are_the_mean_over_all_orders():
    cost = np.repeat([1.0, 2.0, 3.0], [13, 30, 17])
    values = np.sort(rng.random(60))  # the order of the data has all to do with the value
    totals = np.zeros(10)
    for _ in range(4000):
        shuffled = rng.permutation(60)
        order = shuffled[np.argsort(cost[shuffled], kind="stable")]
        totals += values[order].reshape(10, 6).mean(1)
    found = deciles(cost, values)["value"].tolist()
    assert found == pytest.approx((totals / 4000).tolist(), abs=0.01)


def test_fewer_images_than_parts():
    parts = deciles(np.array([2.0, 1.0]), np.array([True, False]))
    assert parts["value"].tolist() == [0, 1]


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


def test_map_counts_every_image_in_its_cell(made, drawn):
    cost = [row["bit_flops"] for row in made.rows]
    wide = (max(cost) - min(cost)) / CELLS[0]
    expected = Counter(
        (
            min(int((row["bit_flops"] - min(cost)) / wide), CELLS[0] - 1),
            min(int(row["confidence"] * CELLS[1]), CELLS[1] - 1),
        )
        for row in made.rows
    )
    axes = drawn["confidence_by_cost"]
    counts = [int(re.search(r"(\d+) images$", text)[1]) for text in tips(axes)]
    assert counts == [count for _, count in sorted(expected.items())]


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
