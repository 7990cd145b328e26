"""Single runs against any cost: where costs are from, and which runs are the best."""

import json

import numpy as np
import pandas as pd
import pytest
from comparisons import rows
from run_folders import write_run

from dqnet.report.compare.__main__ import main
from dqnet.report.compare.by_cost import cost_points, on_the_front
from dqnet.report.compare.find_runs import find_runs
from dqnet.report.compare.groups import run_table


@pytest.fixture
def runs(tmp_path):
    """Packed by default, packed smaller, and one whose cost is not known."""
    for name, own in (
        ("plain", {"weight_bytes": 900, "costs": {"energy": 5.0}, "top1": 88.0}),
        ("coded", {"weight_bytes": 800, "costs": {"energy": 6.0}, "top1": 87.0}),
        ("old", {"weight_bytes": None, "top1": 90.0}),
    ):
        folder = write_run(tmp_path / "runs" / name, widths=(8,))
        summary = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps(summary | own))
    packed = {"stages": {"float": 3000, "coded": 200}}
    (tmp_path / "runs/coded/packed.json").write_text(json.dumps(packed))
    return tmp_path / "runs"


def table_of(folder):
    return run_table(find_runs([folder])[0])


def test_bytes_are_those_of_the_file_that_was_written(runs):
    points = cost_points(table_of(runs), "bytes")
    assert list(points.itertuples(index=False, name=None)) == [
        ("coded", 87.0, 200), ("plain", 88.0, 900)
    ]  # fmt: skip
    energy = cost_points(table_of(runs), "energy")
    assert list(energy["run"]) == ["plain", "coded"]


def test_a_saved_cascade_is_a_point_of_its_own(runs, tmp_path):
    (runs / "plain/cascade").mkdir()
    found = {
        "top1": 89.0,
        "weight_bytes": 900,
        "costs": {"energy": 7.0},
        "checkpoint": "/x/best.pt",
    }
    (runs / "plain/cascade/eval.json").write_text(json.dumps(found))
    kept = tmp_path / "kept"
    main([str(runs), "--out", str(tmp_path / "out"), "--by", "energy", "--keep", str(kept)])
    for folder in (runs, kept):
        points = cost_points(table_of(folder), "energy")
        last = points.iloc[-1]
        assert (last.run, last.top1, last.cost) == ("plain, cascade", 89.0, 7.0)


def test_runs_that_none_beats():
    generator = np.random.default_rng(0)
    for _ in range(20):
        values = pd.DataFrame(
            generator.integers(0, 5, (8, 2)).astype(float), columns=["cost", "top1"]
        )
        values = values.sort_values(["cost", "top1"], ascending=[True, False], ignore_index=True)
        found = {(own.cost, own.top1) for own in values[on_the_front(values)].itertuples()}
        pairs = {(own.cost, own.top1) for own in values.itertuples()}
        beaten = {
            (cost, top1) for cost, top1 in pairs for other, better in pairs
            if other <= cost and better >= top1 and (other, better) != (cost, top1)
        }  # fmt: skip
        assert found == pairs - beaten


def test_figures_and_kept_copies(runs, tmp_path, capsys):
    out, kept = tmp_path / "out", tmp_path / "kept"
    main([str(runs), "--out", str(out), "--by", "bytes", "energy", "--keep", str(kept)])
    assert "by_bytes.png, by_energy.png" in capsys.readouterr().out
    page = (out / "compare.md").read_text()
    for cost in ("bytes", "energy"):
        assert f"(by_{cost}.png)" in page
        assert (out / f"by_{cost}.png").read_bytes().startswith(b"\x89PNG")
        assert (out / f"by_{cost}.pdf").read_bytes().startswith(b"%PDF")
    assert json.loads((kept / "coded/packed.json").read_text())["stages"]["coded"] == 200
    assert len(rows(out / "compare.csv")) == 3


def test_bad_input(runs, tmp_path):
    with pytest.raises(SystemExit, match=r"unknown cost 'enrgy'.*energy"):
        main([str(runs), "--out", str(tmp_path / "out"), "--by", "enrgy"])
    (runs / "coded/packed.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"packed\.json cannot be read"):
        main([str(runs), "--out", str(tmp_path / "out")])
