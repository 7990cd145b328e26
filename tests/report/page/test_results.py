"""Reading an evaluation's files, and refusing what does not belong together."""

import shutil

import numpy as np
import pytest
from evaluations import write_evaluation

from dqnet.errors import UserError
from dqnet.formats import as_written
from dqnet.report.page.results import printable, read_results


def test_arrays_are_those_of_the_rows(tmp_path):
    made = write_evaluation(tmp_path, curve=True)
    results = read_results(tmp_path)
    assert results.labels.tolist() == [row["label"] for row in made.rows]
    assert results.cost.tolist() == [row["bit_flops"] for row in made.rows]
    assert results.confidence.tolist() == [row["confidence"] for row in made.rows]
    for layer, name in enumerate(results.layers):
        assert results.widths[:, layer].tolist() == [row[name] for row in made.rows]
    assert as_written(results.candidates) == (2, 3, 4)
    costs = results.curve["bit_flops"].tolist()
    assert costs == sorted(costs)
    assert costs[-1] == results.metrics["bit_flops"]


def test_images_of_equal_cost_are_mixed_always_alike(tmp_path):
    write_evaluation(tmp_path, layers=("conv",))
    results = read_results(tmp_path)
    order = results.cheapest_first
    assert sorted(order) == list(range(120))
    assert (np.diff(results.cost[order]) >= 0).all()
    cheapest = order[results.cost[order] == results.cost.min()]
    assert cheapest.tolist() != sorted(cheapest)
    assert (read_results(tmp_path).cheapest_first == order).all()


def test_classes_without_names_are_numbers(tmp_path):
    write_evaluation(tmp_path, named=False)
    assert read_results(tmp_path).class_names == ("0", "1", "2", "3")


def test_characters_that_no_page_can_hold():
    assert printable("a\x00b\udcffc\nd") == "a\ufffdb\ufffdc\ufffdd"
    assert printable("Hündchen <b> 犬") == "Hündchen <b> 犬"


@pytest.mark.parametrize("name", ["eval.json", "per_sample.csv", "samples.npz"])
def test_missing_file(tmp_path, name):
    write_evaluation(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=rf"{name} is missing: python eval\.py report=html"):
        read_results(tmp_path)


def test_files_of_two_evaluations(tmp_path):
    write_evaluation(tmp_path / "a")
    write_evaluation(tmp_path / "b", seed=1)
    shutil.copy(tmp_path / "b/samples.npz", tmp_path / "a/samples.npz")
    with pytest.raises(UserError, match="are not of one evaluation"):
        read_results(tmp_path / "a")


def test_damaged_files(tmp_path):
    write_evaluation(tmp_path)
    whole = (tmp_path / "samples.npz").read_bytes()
    (tmp_path / "samples.npz").write_bytes(whole[:1000])
    with pytest.raises(UserError, match=r"the evaluation in .* cannot be read"):
        read_results(tmp_path)
    (tmp_path / "samples.npz").write_bytes(whole)
    (tmp_path / "per_sample.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"the evaluation in .* cannot be read"):
        read_results(tmp_path)
