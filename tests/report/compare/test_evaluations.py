"""What counts of the files that eval.py left in a run."""

import json

import pytest
from run_folders import UNIT, write_run

from dqnet.errors import UserError
from dqnet.report.compare.evaluations import read_evaluation

GAIN = {"gain": 1, "gain_low": 0, "gain_high": 2}
BENEFIT = {"benefit": -2, "benefit_low": -3, "benefit_high": -1}
MEASURED = GAIN | BENEFIT


def read(folder):
    """The gain with its interval, and the points of the curve."""
    found = read_evaluation(folder)
    return found, found.pop("curve").to_numpy().tolist()


def test_gain_and_curve_by_cost(tmp_path):
    curve = [(9 * UNIT, 80.0), (4 * UNIT, 70.0)]
    found = read(write_run(tmp_path / "run", gain=(1, 0, 2), curve=curve))
    assert found == (MEASURED, [[4 * UNIT, 70], [9 * UNIT, 80]])


def test_an_evaluation_from_before_there_was_a_best_fixed_routing(tmp_path):
    folder = write_run(tmp_path / "run", gain=(1, 0, 2))
    content = json.loads((folder / "eval.json").read_text())
    del content["controls"]["benefit"]
    (folder / "eval.json").write_text(json.dumps(content))
    assert read(folder) == (GAIN, [])


def test_nothing_measured(tmp_path):
    assert read(write_run(tmp_path / "run")) == ({}, [])


def test_a_gain_at_another_budget_is_not_the_runs(tmp_path):
    folder = write_run(tmp_path / "run", gain=(1, 0, 2), budget=2.5, curve=[(1, 2)])
    assert read(folder) == ({}, [[1, 2]])


def test_what_was_measured_on_validation_images_is_no_test_figure(tmp_path):
    folder = write_run(tmp_path / "run", gain=(1, 0, 2), split="val", curve=[(1, 2)])
    assert read(folder) == ({}, [])


@pytest.mark.parametrize(
    "name, found", [("best.pt", (MEASURED, [[1, 2]])), ("last.pt", ({}, []))], ids=["best", "last"]
)
def test_what_was_measured_with_another_checkpoint_is_not_the_runs(tmp_path, name, found):
    folder = write_run(tmp_path / "run", gain=(1, 0, 2), curve=[(1, 2)])
    content = json.loads((folder / "eval.json").read_text())
    content["checkpoint"] = f"elsewhere/run/{name}"
    (folder / "eval.json").write_text(json.dumps(content))
    assert read(folder) == found


@pytest.mark.parametrize(
    "name, content",
    [
        ("eval.json", "{"),
        ("eval.json", '{"controls": {"instance_gain": {"points": 1}}}'),
        ("curve.csv", "bit_flops\n1\n"),
        ("curve.csv", "bit_flops,top1\n1,x\n"),
        ("curve.csv", ""),
    ],
)
def test_a_broken_file_is_named_in_one_line(tmp_path, name, content):
    folder = write_run(tmp_path / "run")
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=f"{folder / name} cannot be read: ") as error:
        read_evaluation(folder)
    assert "\n" not in str(error.value)
