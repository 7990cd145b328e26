"""Every point of curve.csv against an evaluation of its own."""

import csv

import numpy as np
import pytest
from PIL import Image

from dqnet.evaluation.budget import Calibration
from dqnet.evaluation.controls import SEEDS
from dqnet.evaluation.curve import POINTS

FIGURES = ["bit_flops", "bit_flops_std", "mean_width", "top1", "loss", "distinct_routings"]


@pytest.fixture(scope="module")
def folder(run):
    return run("quant.widths=[2,3,4]", "quant.static_width=3", "data.val_fraction=0.25").folder


@pytest.fixture(scope="module")
def drawn(folder, measure, tmp_path_factory):
    """``eval.json``, the rows of ``curve.csv`` and their folder, at a budget and with controls."""
    output = tmp_path_factory.mktemp("curve")
    figures = measure(folder, output=str(output), budget=2.8, curve=True, controls=True)
    return figures, read(output), output


def read(folder):
    with (folder / "curve.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def test_columns(folder, measure, drawn, tmp_path):
    columns = ["budget_lambda", *FIGURES]
    assert list(drawn[1][0]) == [*columns, "shuffled_top1"]
    measure(folder, output=str(tmp_path), curve=True)
    assert list(read(tmp_path)[0]) == columns


def test_costs_rise_from_the_cheapest_routing_to_the_most_expensive(drawn):
    _, points, _ = drawn
    cost, price = ([point[key] for point in points] for key in ("bit_flops", "budget_lambda"))
    assert POINTS <= len(points) <= POINTS + 3
    assert cost == sorted(cost)
    assert price == sorted(price, reverse=True)
    ends = points[0], points[-1]
    assert [point["mean_width"] for point in ends] == [2, 4]
    assert [point["distinct_routings"] for point in ends] == [1, 1]
    assert [point["bit_flops_std"] for point in ends] == [0, 0]
    # Evenly spaced on the calibration images, nearly so on others.
    spaced = [point["bit_flops"] for point in points if point["budget_lambda"] != 0]
    gaps = np.diff(spaced) / (cost[-1] - cost[0])
    assert gaps.max() < 2 / (POINTS - 1)


def test_one_point_costs_what_the_target_allows(folder, measure, drawn, tmp_path):
    """The most of it, on the calibration images, that the network's steps of cost have room for."""
    _, points, _ = drawn
    at_target = measure(folder, output=str(tmp_path), budget=3)
    assert at_target["target_bits"] == 3
    (point,) = (p for p in points if p["budget_lambda"] == at_target["budget_lambda"])
    assert point["top1"] == at_target["top1"]
    assert point["bit_flops"] == pytest.approx(at_target["bit_flops"])


@pytest.mark.parametrize("place", ["trained", "budget", "another"])
def test_a_point_is_what_the_evaluation_at_its_price_gives(
    folder, measure, drawn, tmp_path, monkeypatch, place
):
    figures, points, _ = drawn
    if place == "trained":
        price, figures = 0.0, measure(folder, output=str(tmp_path))
    elif place == "budget":
        price = figures["budget_lambda"]
    else:
        price = points[4]["budget_lambda"]
        monkeypatch.setattr(Calibration, "lambda_for", lambda self, budget: price)
        figures = measure(folder, output=str(tmp_path), budget=3)
    (point,) = (point for point in points if point["budget_lambda"] == price)
    for key in FIGURES:
        assert point[key] == pytest.approx(figures[key], rel=1e-6)


def test_the_evaluations_own_point_is_exact(drawn):
    figures, points, _ = drawn
    (point,) = (p for p in points if p["budget_lambda"] == figures["budget_lambda"])
    for key in ("bit_flops", "top1", "loss"):
        assert point[key] == figures[key]
    shuffled = [row["top1"] for row in figures["controls"]["shuffled"]]
    assert len(shuffled) == len(SEEDS)
    assert point["shuffled_top1"] == pytest.approx(np.mean(shuffled))


def test_where_one_routing_serves_all_there_is_nothing_to_shuffle(drawn):
    figures, points, _ = drawn
    for point, width in ((points[0], "2"), (points[-1], "4")):
        single = figures["controls"]["single"][width]
        assert point["shuffled_top1"] == point["top1"] == single["top1"]
        assert point["bit_flops"] == single["bit_flops"]


def test_shuffled_cost_at_own_accuracy_lies_on_the_curve(drawn):
    figures, points, _ = drawn
    found = figures["controls"]["shuffled_bit_flops_at_own_top1"]
    reached = [point["shuffled_top1"] for point in points]
    if found is None:
        assert max(reached) < figures["top1"]
        return
    cost = [point["bit_flops"] for point in points]
    assert found == cost[0] or np.interp(found, cost, reached) == pytest.approx(figures["top1"])


FILES = ("curve.csv", "curve.png", "curve.pdf")


@pytest.fixture(scope="module")
def two_epochs(run):
    """A run whose best.pt and last.pt are different files."""
    dynamic = "quant.widths=[2,3,4]", "quant.static_width=3"
    return run(*dynamic, "data.val_fraction=0.25", "trainer.epochs=2", "trainer.ema=0.9").folder


@pytest.mark.parametrize(
    ("first", "then", "kept"),
    [
        (("best.pt", {}), ("best.pt", {}), True),
        (("best.pt", {}), ("best.pt", {"budget": 2.8}), True),
        (("best.pt", {"budget": 2.8}), ("copy.pt", {"controls": True}), True),
        (("best.pt", {"split": "val"}), ("best.pt", {}), False),
        (("last.pt", {}), ("best.pt", {}), False),
    ],
)
def test_curve_stays_while_it_is_of_the_same_weights_and_images(
    two_epochs, measure, tmp_path, first, then, kept
):
    (two_epochs / "copy.pt").write_bytes((two_epochs / "best.pt").read_bytes())
    out = {"output": str(tmp_path)}
    name, settings = first
    measure(two_epochs / name, **settings, **out, curve=True)
    before = [(tmp_path / file).read_bytes() for file in FILES]
    name, settings = then
    measure(two_epochs / name, **settings, **out)
    assert [(tmp_path / file).exists() for file in FILES] == [kept] * 3
    assert not kept or [(tmp_path / file).read_bytes() for file in FILES] == before
    measure(two_epochs / name, **settings, **out, curve=True)
    assert all((tmp_path / file).exists() for file in FILES)


def test_curve_of_nobody_knows_what(two_epochs, measure, tmp_path):
    measure(two_epochs, output=str(tmp_path), curve=True)
    (tmp_path / "eval.json").unlink()
    measure(two_epochs, output=str(tmp_path))
    assert not (tmp_path / "curve.csv").exists()


def test_figure_is_drawn(drawn):
    *_, output = drawn
    with Image.open(output / "curve.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 5
    assert (output / "curve.pdf").read_bytes().startswith(b"%PDF")
