"""Small copies of runs."""

import json

import pytest
from comparisons import rows
from omegaconf import OmegaConf
from run_folders import write_run

from dqnet.report.compare.__main__ import main
from dqnet.report.compare.export_runs import exported_name, without_paths


def test_kept_copies_give_the_same_tables(study, tmp_path):
    main([str(study), "--out", str(tmp_path / "before"), "--keep", str(tmp_path / "kept")])
    main([str(tmp_path / "kept"), "--out", str(tmp_path / "after")])
    before, after = (rows(tmp_path / name / "compare.csv") for name in ("before", "after"))
    assert [row.pop("folder").rpartition("/")[2] for row in before] == [
        row.pop("folder").rpartition("/")[2] for row in after
    ]
    assert before == after
    for name in ("pairs.csv", "compare.md", "compare.png"):
        assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes()
    assert not list((tmp_path / "kept").rglob("*.pt"))


@pytest.mark.usefixtures("without_figure")
def test_kept_copies_know_no_path_of_the_machine(tmp_path):
    folder = write_run(
        tmp_path / "runs" / "data.root=-srv-data,quant.widths=[2,3]",
        gain=(1, 0, 2),
        overrides=["data.root=/srv/data", "model.checkpoint_path='/srv/my runs/float/best.pt'"],
        config={"data": {"root": "/srv/data"}, "model": {"checkpoint_path": "/srv/a/b.pt"}},
    )
    content = json.loads((folder / "eval.json").read_text())
    content |= {"checkpoint": "/srv/runs/x/best.pt", "few": [1, 2]}
    (folder / "eval.json").write_text(json.dumps(content))
    kept = tmp_path / "kept"
    main([str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--keep", str(kept)])
    copy = kept / "quant.widths=[2,3]"
    config = OmegaConf.load(copy / ".hydra" / "config.yaml")
    assert (config.data.root, config.model.checkpoint_path) == ("DATA", "a/b.pt")
    overrides = OmegaConf.load(copy / ".hydra" / "overrides.yaml")
    assert overrides[-2:] == ["data.root=DATA", "model.checkpoint_path=float/best.pt"]
    evaluated = json.loads((copy / "eval.json").read_text())
    assert (evaluated["checkpoint"], evaluated["few"]) == ("x/best.pt", [1, 2])
    assert not [path for path in kept.rglob("*") if path.is_file() and "/srv" in path.read_text()]


@pytest.mark.usefixtures("without_figure")
def test_two_runs_of_one_name_are_not_kept_over_each_other(tmp_path):
    for seed, parent in enumerate("ab"):
        write_run(tmp_path / parent / "run", seed=seed)
    with pytest.raises(SystemExit) as exit_:
        main([str(tmp_path), "--out", str(tmp_path / "out"), "--keep", str(tmp_path / "kept")])
    assert "would both be kept as run" in exit_.value.code
    assert not (tmp_path / "kept").exists()


@pytest.mark.usefixtures("without_figure")
def test_keeping_runs_where_they_are_changes_nothing(study, tmp_path):
    before = {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}
    main([str(study), "--out", str(tmp_path / "out"), "--keep", str(study)])
    after = {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}
    assert before == after


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("default", "default"),
        ("data.root=-d,quant.widths=[2,3,4],seed=1", "quant.widths=[2,3,4],seed=1"),
        ("model.checkpoint_path=-a-b.pt-12345678", "model.checkpoint_path=-a-b.pt-12345678"),
    ],
)
def test_names_of_kept_runs(name, kept):
    assert exported_name(name) == kept


def test_only_absolute_paths_are_shortened():
    content = ["data.root=/a/b", "data.root=images", "model.args={a: /x}", "/one", 3, None]
    expected = ["data.root=DATA", "data.root=images", "model.args={a: /x}", "one", 3, None]
    assert without_paths(content) == expected
    assert without_paths({"data_root": "/a/b", "checkpoint": "/a/b/c.pt"}) == {
        "data_root": "DATA",
        "checkpoint": "b/c.pt",
    }
