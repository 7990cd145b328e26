"""Finding run folders and reading them."""

import json

import pytest
from run_folders import UNIT, write_run

from dqnet.errors import UserError
from dqnet.report.compare.find_runs import find_runs
from dqnet.report.runs import CurvePoint, Gain, read_run


def test_a_run_is_what_its_files_say(tmp_path):
    folder = write_run(
        tmp_path / "run",
        method="lsq",
        widths=(2, 3, 4),
        seed=7,
        top1=81.5,
        cost=10 * UNIT,
        std=2 * UNIT,
        overrides=["loss.alpha=2"],
        gain=(0.3, 0.1, 0.5),
        curve=[(9 * UNIT, 80.0), (4 * UNIT, 70.0)],
    )
    run = read_run(folder)
    assert (run.method, run.kind, run.widths, run.seed) == ("lsq", "dynamic", (2, 3, 4), 7)
    assert (run.target_bits, run.target_bit_flops) == (3.0, 9 * UNIT)
    assert (run.top1, run.bit_flops, run.bit_flops_std) == (81.5, 10 * UNIT, 2 * UNIT)
    assert run.relative_cost == 10 / 9
    assert run.gain == Gain(0.3, 0.1, 0.5)
    assert run.curve == (CurvePoint(4 * UNIT, 70.0), CurvePoint(9 * UNIT, 80.0))
    assert "loss.alpha=2" in run.overrides


def test_one_width_is_static_and_no_quantizer_is_float(tmp_path):
    static = read_run(write_run(tmp_path / "static", widths=(4,)))
    unconverted = read_run(write_run(tmp_path / "float", method=None))
    assert (static.kind, static.method, static.relative_cost) == ("static", "dorefa", 1.0)
    assert (unconverted.kind, unconverted.method, unconverted.widths) == ("float", "float", ())
    assert unconverted.bit_flops is unconverted.relative_cost is None


def test_a_gain_at_another_budget_is_not_the_runs(tmp_path):
    run = read_run(write_run(tmp_path / "run", gain=(1, 0, 2), budget=2.5, curve=[(1, 2)]))
    assert (run.gain, run.curve) == (None, (CurvePoint(1, 2),))


def test_what_was_measured_on_validation_images_is_no_test_figure(tmp_path):
    run = read_run(write_run(tmp_path / "run", gain=(1, 0, 2), split="val", curve=[(1, 2)]))
    assert (run.gain, run.curve) == (None, ())


def test_what_was_measured_with_another_checkpoint_is_not_the_runs(tmp_path):
    folder = write_run(tmp_path / "run", gain=(1, 0, 2), curve=[(1, 2)])
    content = json.loads((folder / "eval.json").read_text())
    for name, counts in (("best.pt", True), ("last.pt", False)):
        content["checkpoint"] = f"elsewhere/run/{name}"
        (folder / "eval.json").write_text(json.dumps(content))
        run = read_run(folder)
        assert (run.gain is not None, bool(run.curve)) == (counts, counts)


def test_folders_are_searched_to_the_bottom_and_each_run_counts_once(tmp_path):
    write_run(tmp_path / "a" / "deep" / "er" / "run")
    write_run(tmp_path / "b")
    (tmp_path / "link").symlink_to(tmp_path / "b")
    found, unfinished = find_runs([tmp_path, tmp_path / "a", tmp_path / "link"])
    assert [run.folder.name for run in found] == ["run", "b"]
    assert unfinished == []


def test_a_run_without_summary_is_unfinished(tmp_path):
    for name, file in [("early", "metrics.jsonl"), ("late", "last.pt")]:
        (tmp_path / name).mkdir()
        (tmp_path / name / file).touch()
    (tmp_path / "late" / "metrics.jsonl").touch()
    write_run(tmp_path / "whole")
    found, unfinished = find_runs([tmp_path])
    assert [run.folder.name for run in found] == ["whole"]
    assert sorted(folder.name for folder in unfinished) == ["early", "late"]


def _without(folder, key):
    summary = json.loads((folder / "summary.json").read_text())
    del summary[key]
    (folder / "summary.json").write_text(json.dumps(summary))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda run: (run / "summary.json").write_text('{"top1": 8'), "summary.json cannot be"),
        (lambda run: (run / "summary.json").write_text("[]"), "summary.json cannot be"),
        (lambda run: _without(run, "top1"), "summary.json has no 'top1'"),
        (lambda run: (run / ".hydra/config.yaml").unlink(), "config.yaml is missing"),
        (lambda run: (run / ".hydra/config.yaml").write_text("a: [1"), "config.yaml cannot be"),
        (lambda run: (run / ".hydra/config.yaml").write_text("a: 1"), "is not the record"),
        (lambda run: (run / "eval.json").write_text("{"), "eval.json cannot be read"),
        (lambda run: (run / "curve.csv").write_text("bit_flops\n1\n"), "curve.csv is broken"),
        (lambda run: (run / "curve.csv").write_text("bit_flops,top1\n1,x\n"), "curve.csv is"),
    ],
)
def test_a_broken_file_is_named_in_one_line(tmp_path, spoil, said):
    folder = write_run(tmp_path / "run")
    spoil(folder)
    with pytest.raises(UserError) as error:
        find_runs([tmp_path])
    assert said in str(error.value)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere is not a folder"):
        find_runs([tmp_path / "nowhere"])
