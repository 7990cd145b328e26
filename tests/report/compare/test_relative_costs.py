"""Every cost of a run over that of another one."""

import json

import pytest
from comparisons import rows
from run_folders import write_run

from dqnet.report.compare.__main__ import main

pytestmark = pytest.mark.usefixtures("without_figure")


@pytest.fixture
def runs(tmp_path):
    """Three runs: one evaluated, one that only its training measured, one without costs."""
    for name, costs in (("wide", {"bit_flops": 8.0, "energy": 4.0}), ("plan", {"bit_flops": 2.0})):
        folder = write_run(tmp_path / "runs" / name, widths=(8,) if name == "wide" else (4,))
        summary = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps(summary | {"costs": costs}))
    evaluation = {"split": "test", "budget": None, "costs": {"bit_flops": 2.0, "energy": 3.0}}
    (tmp_path / "runs/plan/eval.json").write_text(json.dumps(evaluation))
    write_run(tmp_path / "runs/old", widths=(2,))
    return tmp_path / "runs"


def test_costs_are_divided_by_those_of_one_run(runs, tmp_path, capsys):
    out = tmp_path / "out"
    main([str(runs), "--out", str(out), "--relative-to", str(runs / "wide")])
    found = {row["run"]: row for row in rows(out / "costs.csv")}
    assert found.keys() == {"wide", "plan"}
    assert [float(found["wide"][cost]) for cost in ("bit_flops", "energy")] == [1, 1]
    assert [float(found["plan"][cost]) for cost in ("bit_flops", "energy")] == [2 / 8, 3 / 4]
    assert "| plan | 80.00 | 0.250 | 0.750 |" in (out / "compare.md").read_text()
    assert "costs.csv" in capsys.readouterr().out
    main([str(runs), "--out", str(out)])
    assert not (out / "costs.csv").exists() and "Costs" not in (out / "compare.md").read_text()


@pytest.mark.parametrize(
    ("name", "message"),
    [("nowhere", "is not one of the runs"), ("old", "does not say what it costs: evaluate it")],
)
def test_a_run_to_compare_with_has_costs(runs, tmp_path, name, message):
    with pytest.raises(SystemExit, match=message):
        main([str(runs), "--out", str(tmp_path / "out"), "--relative-to", str(runs / name)])
