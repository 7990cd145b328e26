"""The command that compares runs: its files, its tables on the screen, and its refusals."""

import math
import re
import runpy
import sys

import matplotlib.image
import pytest
from comparisons import rows
from run_folders import UNIT, write_run

from dqnet.report.compare.__main__ import main


def test_command_writes_tables_and_figure(study, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "argv", ["compare", "runs", "--title", "A study"])
    monkeypatch.delitem(sys.modules, "dqnet.report.compare.__main__")
    runpy.run_module("dqnet.report.compare", run_name="__main__")  # as python -m does
    printed, complaints = capsys.readouterr()
    assert complaints == ""
    out = tmp_path / "compare"
    assert {path.name for path in out.iterdir()} == {
        "compare.csv", "compare.md", "compare.pdf", "compare.png", "pairs.csv",
    }  # fmt: skip
    assert "unfinished, not counted: runs/cut" in printed
    for said in ("80.50 ± 0.71", "83.00 ± 1.41", "+2.50 ± 1.58"):
        assert said in printed
        assert said in (out / "compare.md").read_text()
    assert (out / "compare.md").read_text().startswith("# A study\n")
    image = matplotlib.image.imread(out / "compare.png")
    assert image.shape[1] > 1000
    assert image.std() > 0.05
    assert (out / "compare.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.usefixtures("without_figure")
def test_a_row_per_run(study, tmp_path):
    main([str(study), str(study / "static2"), "--out", str(tmp_path / "out")])
    table = rows(tmp_path / "out" / "compare.csv")
    kinds = ["float", "static", "static", "static", "dynamic", "dynamic"]
    assert [row["kind"] for row in table] == kinds
    last = table[-1]
    assert (last["method"], last["widths"], last["seed"]) == ("dorefa", "2/3/4", "1")
    assert (float(last["bit_flops"]), float(last["bit_flops_std"])) == (10 * UNIT, UNIT)
    assert float(last["relative_cost"]) == 10 / 9
    assert [last[name] for name in ("gain", "gain_low", "gain_high")] == ["0.5", "0.1", "0.9"]
    assert [last[f"benefit{end}"] for end in ("", "_low", "_high")] == ["-2.5", "-2.9", "-2.1"]
    assert table[0]["bit_flops"] == table[0]["gain"] == table[0]["label"] == ""


@pytest.mark.usefixtures("without_figure")
def test_static_against_dynamic_in_numbers(study, tmp_path):
    main([str(study), "--out", str(tmp_path / "out")])
    (row,) = rows(tmp_path / "out" / "pairs.csv")  # 2 bits: no dynamic run, and none is cheaper
    values = {name: float(row[name]) for name in row if re.fullmatch(r"[\d.]+", row[name])}
    assert values["difference"] == pytest.approx((82 + 84) / 2 - (80 + 81) / 2)
    assert values["difference_std"] == pytest.approx(math.sqrt(2 + 0.5))
    assert values["cost_ratio"] == pytest.approx(9.5 / 9)
    # 80.5 is first reached at 7, where both curves say 81.
    assert values["same_accuracy_cost_ratio"] == pytest.approx(7 / 9)
    assert row["same_accuracy_at"] == "target 3, its curve"


def test_the_same_runs_give_the_same_files(study, tmp_path):
    for name in "ab":
        main([str(study), "--out", str(tmp_path / name)])
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


@pytest.mark.usefixtures("without_figure")
def test_narrow_screen_cuts_no_number(study, tmp_path, monkeypatch, capsys):
    write_run(study / "other", widths=(2, 3, 4), overrides=["quant.controller.kind=separate"])
    monkeypatch.setenv("COLUMNS", "80")
    main([str(study), "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    tables = [line for line in printed.splitlines() if str(tmp_path) not in line]
    assert max(map(len, tables)) <= 80
    assert "83.00 ± 1.41" in printed
    assert "+2.50 ± 1.58" in printed
    assert "…" not in printed


def test_a_float_model_alone_is_compared_too(tmp_path):
    write_run(tmp_path / "runs" / "float", method=None)
    main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out" / "pairs.csv").exists()
    assert "float" in (tmp_path / "out" / "compare.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "error: nowhere is not a folder"),
        (["empty"], "error: no finished run (summary.json) below empty"),
        (["runs/cut"], "error: no finished run (summary.json) below runs/cut"),
        (["broken"], "error: broken/summary.json cannot be read"),
        (["runs", "--out", "file/out"], "error: file/out cannot be written: Not a directory"),
    ],
)
def test_mistakes_end_with_one_line(study, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (write_run(tmp_path / "broken") / "summary.json").write_text('{"top1"')
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code.startswith(said)  # a text: exit status 1
    assert "\n" not in exit_.value.code
