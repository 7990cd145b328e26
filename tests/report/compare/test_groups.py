"""What tells lines apart, and means over seeds."""

import math

import pytest
from comparisons import groups_of, pairs_of
from run_folders import write_run

from dqnet.report.compare.__main__ import main


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


@pytest.mark.usefixtures("without_figure")
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


@pytest.mark.usefixtures("without_figure")
def test_a_run_and_its_kept_copy_count_once(study, tmp_path):
    before = groups_of(study)["runs"].tolist()
    main([str(study), "--out", str(tmp_path / "out"), "--keep", str(study / "kept")])
    assert groups_of(study)["runs"].tolist() == before


def test_one_seeds_curve_is_not_the_curve_of_their_mean(tmp_path):
    for seed in range(2):
        curve = () if seed else [(4.0, 70.0)]
        write_run(tmp_path / str(seed), widths=(2, 3), seed=seed, curve=curve)
    (curve,) = groups_of(tmp_path)["curve"]
    assert curve.empty


def test_mean_curve_covers_what_all_runs_reach(tmp_path):
    curves = [(2.0, 60.0), (4.0, 70.0), (6.0, 74.0)], [(3.0, 70.0), (5.0, 80.0), (9.0, 90.0)]
    for seed, curve in enumerate(curves):
        write_run(tmp_path / str(seed), widths=(2, 3), seed=seed, curve=curve)
    (curve,) = groups_of(tmp_path)["curve"]
    # At 4 the second run has 75, at 6 it has 82.5; it does not reach down to 2.
    assert curve.to_numpy().tolist() == [[4.0, 72.5], [6.0, 78.25]]
