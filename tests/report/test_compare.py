"""Runs compared: what tells lines apart, means over seeds, and static against dynamic."""

import csv
import json
import math
import os
import re
import subprocess
import sys

import matplotlib.image
import pandas as pd
import pytest
from omegaconf import OmegaConf
from run_folders import UNIT, write_run

from dqnet.report.compare.__main__ import main
from dqnet.report.compare.export_runs import exported_name, without_paths
from dqnet.report.compare.find_runs import find_runs
from dqnet.report.compare.groups import group, run_table
from dqnet.report.compare.pairs import pair


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def groups_of(folder):
    return group(run_table(find_runs([folder])[0]))


def pairs_of(folder):
    return list(pair(groups_of(folder)).itertuples())


@pytest.fixture
def study(tmp_path):
    """Static and dynamic at 3 bits, two seeds each; static at 2; a float model; one unfinished."""
    runs = tmp_path / "runs"
    write_run(runs / "float", method=None, top1=90.0)
    write_run(runs / "static2", widths=(2,), top1=74.0)
    for seed, (static, dynamic) in enumerate([(80.0, 82.0), (81.0, 84.0)]):
        write_run(runs / f"static3-{seed}", widths=(3,), top1=static, seed=seed)
        write_run(
            runs / f"dynamic3-{seed}",
            widths=(2, 3, 4),
            top1=dynamic,
            seed=seed,
            cost=(9.0 + seed) * UNIT,
            std=UNIT,
            gain=(0.5, 0.1, 0.9) if seed else None,
            # At 5 the mean is 78, at 7 it is 81, at 8 it is 82.
            curve=[(5 * UNIT, 77.0 + 2 * seed), (7 * UNIT, 81.0), (8 * UNIT, 82.0)],
        )
    (runs / "cut").mkdir()
    (runs / "cut" / "metrics.jsonl").touch()
    return runs


# The command


def test_command_writes_tables_and_figure(study, tmp_path):
    command = [sys.executable, "-m", "dqnet.report.compare", "runs", "--title", "A study"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    process = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (process.returncode, process.stderr) == (0, "")
    out = tmp_path / "compare"
    assert {path.name for path in out.iterdir()} == {
        "compare.csv", "compare.md", "compare.pdf", "compare.png", "pairs.csv",
    }  # fmt: skip
    assert "unfinished, not counted: runs/cut" in process.stdout
    for said in ("80.50 ± 0.71", "83.00 ± 1.41", "+2.50 ± 1.58"):
        assert said in process.stdout
        assert said in (out / "compare.md").read_text()
    assert (out / "compare.md").read_text().startswith("# A study\n")
    image = matplotlib.image.imread(out / "compare.png")
    assert image.shape[1] > 1000
    assert image.std() > 0.05
    assert (out / "compare.pdf").read_bytes().startswith(b"%PDF")


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
    assert table[0]["bit_flops"] == table[0]["gain"] == table[0]["label"] == ""


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


# What tells lines apart


@pytest.mark.parametrize(
    "override",
    [
        "seed=3", "data.root=/d", "model.checkpoint_path=/w.pt", "trainer.device=cuda",
        "trainer.progress=false", "trainer.checkpoint_minutes=1", "trainer.checkpoint_steps=1",
        "data.workers=3", "data.download=true", "logger.name=wandb", "+logger.project=x",
        "loss.alpha=1", "optim.lr=0.05",
    ],
)  # fmt: skip
def test_seed_circumstances_and_typed_defaults_are_no_settings(tmp_path, override):
    write_run(tmp_path / "a", widths=(2, 3, 4))
    write_run(tmp_path / "b", widths=(2, 3, 4), seed=3, overrides=[override])
    (g,) = groups_of(tmp_path).itertuples()
    assert (g.label, g.runs) == ("", 2)


def test_widths_and_target_are_no_settings(tmp_path):
    write_run(tmp_path / "a", widths=(2, 3, 4))
    write_run(tmp_path / "b", widths=(2, 3), target=2.5, overrides=["loss.target_bits=2.5"])
    write_run(tmp_path / "c", widths=(2, 3), target=3, overrides=["+loss.alpha=2"])
    groups = groups_of(tmp_path)
    assert groups["label"].tolist() == ["", "", "loss.alpha=2"]
    assert groups["target_bits"].tolist() == [2.5, 3, 3]


def test_settings_are_shown_as_they_were_typed(tmp_path, capsys):
    for layer in ("layer1", "layer2"):
        write_run(tmp_path / layer, overrides=[f"quant.static=[{layer}]"])
    main([str(tmp_path), "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "static=[layer1]" in printed
    assert "static=[layer2]" in printed


def test_settings_that_all_runs_of_a_method_have_are_not_in_the_label(tmp_path):
    common = ["optim.lr=0.1", "experiment=cifar_static"]
    write_run(tmp_path / "a", overrides=common)
    common = ["optim.lr=0.1", "experiment=cifar_dynamic"]
    write_run(tmp_path / "b", widths=(2, 3, 4), overrides=common)
    write_run(tmp_path / "c", widths=(2, 3, 4), overrides=[*common, "quant.shared_until=layer2"])
    write_run(tmp_path / "d", method="lsq", overrides=["optim.lr=0.01"])
    labels = [(g.method, g.kind, g.label) for g in groups_of(tmp_path).itertuples()]
    assert labels == [
        ("dorefa", "static", ""),
        ("dorefa", "dynamic", ""),
        ("dorefa", "dynamic", "quant.shared_until=layer2"),
        ("lsq", "static", ""),
    ]


def test_seeds_are_averaged_and_other_settings_are_not(study):
    write_run(study / "long", widths=(3,), seed=2, top1=99.0, epochs=9)
    groups = groups_of(study).itertuples()
    statics = [g for g in groups if g.kind == "static" and g.target_bits == 3]
    assert [(g.top1, g.runs, g.label) for g in statics] == [
        (80.5, 2, "trainer.epochs=6"),
        (99.0, 1, "trainer.epochs=9"),
    ]
    assert math.isnan(statics[1].top1_seeds)


def test_runs_of_one_command_and_other_settings_are_lines_of_their_own(tmp_path):
    """As when the file of a sweep was changed between two starts."""
    for lr, top1 in ((0.1, 80.0), (0.2, 60.0)):
        config = {"optim": {"lr": lr}}
        write_run(tmp_path / f"static-{lr}", top1=top1, config=config)
        dynamic = {"widths": (2, 3, 4), "config": config}
        write_run(tmp_path / f"dynamic-{lr}", **dynamic, top1=top1 + 1)
    assert [(g.label, g.kind, g.top1) for g in groups_of(tmp_path).itertuples()] == [
        ("optim.lr=0.1", "static", 80.0),
        ("optim.lr=0.1", "dynamic", 81.0),
        ("optim.lr=0.2", "static", 60.0),
        ("optim.lr=0.2", "dynamic", 61.0),
    ]
    assert [found.difference for found in pairs_of(tmp_path)] == [1.0, 1.0]


def test_a_record_without_a_setting_is_of_an_earlier_version(tmp_path):
    write_run(tmp_path / "old", top1=80.0)
    write_run(tmp_path / "new", top1=82.0, seed=1, config={"optim": {"new": 1}})
    (g,) = groups_of(tmp_path).itertuples()
    assert g.top1 == 81.0


@pytest.mark.parametrize(
    "seed, labels", [(1, [""]), (0, ["data.root=/a", "data.root=/b"])], ids=["moved", "other data"]
)
def test_paths_tell_runs_apart_if_a_seed_comes_twice(tmp_path, seed, labels):
    write_run(tmp_path / "a", config={"data": {"root": "/a"}})
    write_run(tmp_path / "b", config={"data": {"root": "/b"}}, top1=70.0, seed=seed)
    assert groups_of(tmp_path)["label"].tolist() == labels


def test_a_run_and_its_kept_copy_count_once(study, tmp_path):
    before = groups_of(study)["runs"].tolist()
    main([str(study), "--out", str(tmp_path / "out"), "--keep", str(study / "kept")])
    assert groups_of(study)["runs"].tolist() == before


def test_one_seeds_curve_is_not_the_curve_of_their_mean(tmp_path):
    for seed in range(2):
        curve = () if seed else [(4.0, 70.0)]
        write_run(tmp_path / str(seed), widths=(2, 3), seed=seed, curve=curve)
    (curve,) = groups_of(tmp_path)["curve"]
    assert curve == ()


def test_mean_curve_covers_what_all_runs_reach(tmp_path):
    curves = [(2.0, 60.0), (4.0, 70.0), (6.0, 74.0)], [(3.0, 70.0), (5.0, 80.0), (9.0, 90.0)]
    for seed, curve in enumerate(curves):
        write_run(tmp_path / str(seed), widths=(2, 3), seed=seed, curve=curve)
    (curve,) = groups_of(tmp_path)["curve"]
    # At 4 the second run has 75, at 6 it has 82.5; it does not reach down to 2.
    assert [(p.bit_flops, p.top1) for p in curve] == [(4.0, 72.5), (6.0, 78.25)]


# Static against dynamic


def test_a_line_is_compared_with_the_static_network_of_its_settings(tmp_path):
    write_run(tmp_path / "static", top1=80.0)
    write_run(tmp_path / "static-long", top1=83.0, epochs=9)
    dynamic = {"widths": (2, 3, 4), "top1": 84.0}
    write_run(tmp_path / "plain", **dynamic)
    separate = "quant.controller.kind=separate"
    write_run(tmp_path / "separate", **dynamic, overrides=[separate])
    write_run(tmp_path / "long", **dynamic, epochs=9, overrides=[separate])
    write_run(tmp_path / "longest", **dynamic, epochs=30)
    write_run(tmp_path / "lsq", method="lsq", **dynamic)
    found = {pair.settings: pair.difference for pair in pairs_of(tmp_path)}
    assert found == {
        ("trainer.epochs=6",): 4.0,
        (separate, "trainer.epochs=6"): 4.0,
        (separate, "trainer.epochs=9"): 1.0,
    }


def test_each_kind_has_a_recipe_of_its_own(tmp_path):
    recipe = {"overrides": ["experiment=one"], "config": {"loss": {"alpha": 3.0}}}
    write_run(tmp_path / "static", **recipe)
    recipe = {"overrides": ["experiment=another"], "config": {"loss": {"alpha": 2.0}}}
    write_run(tmp_path / "dynamic", widths=(2, 3, 4), **recipe)
    (found,) = pairs_of(tmp_path)
    assert (found.label, found.dynamic_runs) == ("", 1)


def test_a_setting_that_only_dynamic_runs_were_given_is_in_the_label(tmp_path):
    write_run(tmp_path / "static")
    write_run(tmp_path / "dynamic", widths=(2, 3, 4), overrides=["optim.lr=0.1"])
    (found,) = pairs_of(tmp_path)
    assert (found.static_label, found.label) == ("", "optim.lr=0.1")


def test_another_target_counts_where_it_is_as_accurate_and_cheaper(tmp_path):
    write_run(tmp_path / "static", widths=(4,), top1=80.0)
    write_run(tmp_path / "dynamic", widths=(2, 3, 4), top1=80.0)
    (found,) = pairs_of(tmp_path)
    assert all(map(math.isnan, (found.dynamic_top1, found.difference, found.cost_ratio)))
    assert found.same_accuracy_cost_ratio == 9 / 16
    assert found.same_accuracy_at == "target 3"


def test_an_accuracy_that_is_never_reached_has_no_ratio(tmp_path):
    write_run(tmp_path / "static", top1=80.0)
    write_run(tmp_path / "dynamic", widths=(2, 3, 4), top1=79.0, curve=[(20 * UNIT, 79.9)])
    (found,) = pairs_of(tmp_path)
    assert math.isnan(found.same_accuracy_cost_ratio)
    assert pd.isna(found.same_accuracy_at)


# Small copies


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


def test_kept_copies_know_no_path_of_the_machine(tmp_path):
    folder = write_run(
        tmp_path / "runs" / "data.root=-srv-data,quant.widths=[2,3]",
        gain=(1, 0, 2),
        overrides=["data.root=/srv/data", "model.checkpoint_path='/srv/my runs/float/best.pt'"],
        config={"data": {"root": "/srv/data"}, "model": {"checkpoint_path": "/srv/a/b.pt"}},
    )
    content = json.loads((folder / "eval.json").read_text())
    content |= {"checkpoint": "/srv/runs/x/best.pt", "scores": list(range(1000)), "few": [1, 2]}
    (folder / "eval.json").write_text(json.dumps(content))
    kept = tmp_path / "kept"
    main([str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--keep", str(kept)])
    copy = kept / "quant.widths=[2,3]"
    config = OmegaConf.load(copy / ".hydra" / "config.yaml")
    assert (config.data.root, config.model.checkpoint_path) == ("DATA", "a/b.pt")
    overrides = OmegaConf.load(copy / ".hydra" / "overrides.yaml")
    assert overrides[-2:] == ["data.root=DATA", "model.checkpoint_path=float/best.pt"]
    evaluated = json.loads((copy / "eval.json").read_text())
    assert "scores" not in evaluated
    assert (evaluated["checkpoint"], evaluated["few"]) == ("x/best.pt", [1, 2])
    assert not [path for path in kept.rglob("*") if path.is_file() and "/srv" in path.read_text()]


def test_two_runs_of_one_name_are_not_kept_over_each_other(tmp_path):
    for seed, parent in enumerate("ab"):
        write_run(tmp_path / parent / "run", seed=seed)
    with pytest.raises(SystemExit) as exit_:
        main([str(tmp_path), "--out", str(tmp_path / "out"), "--keep", str(tmp_path / "kept")])
    assert "would both be kept as run" in exit_.value.code
    assert not (tmp_path / "kept").exists()


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
