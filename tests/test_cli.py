"""The command line from end to end; wrong uses of it are in test_bad_input.py."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

import dqnet
from dqnet import cli
from dqnet.evaluation import trained as evaluated
from dqnet.training import train as loop

ROOT = Path(__file__).resolve().parents[1]
TINY = ["data.size=8", "trainer.device=cpu", "trainer.progress=false"]


def start(script, *arguments, folder):
    """A process of its own."""
    command = [sys.executable, str(ROOT / script), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


# From end to end


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A dynamic run of one epoch, started in a process of its own; and its settings."""
    folder = tmp_path_factory.mktemp("work")
    settings = [*TINY, "trainer.epochs=1", "hydra.run.dir=run", "quant.widths=[2,3,4]"]
    settings += ["quant.static_width=3", "data.val_fraction=0", "trainer.ema=null"]
    process = start("train.py", *settings, folder=folder)
    assert process.returncode == 0, process.stderr
    return folder / "run", settings, process


@pytest.fixture(scope="module")
def measured(trained):
    """last.pt evaluated, likewise."""
    folder = trained[0]
    process = start("eval.py", f"checkpoint={folder}/last.pt", folder=folder.parent)
    assert process.returncode == 0, process.stderr
    return json.loads((folder / "eval.json").read_text()), process


def test_run_folder_holds_the_files_of_the_contract(trained):
    folder, *_ = trained
    names = {path.name for path in folder.iterdir()}
    assert names >= {".hydra", "metrics.jsonl", "last.pt", "best.pt", "summary.json"}
    files = {path.name for path in (folder / ".hydra").iterdir()}
    assert files == {"config.yaml", "hydra.yaml", "overrides.yaml"}
    assert [path.name for path in folder.parent.iterdir()] == ["run"]


def test_summary_has_every_figure_of_the_contract(trained):
    summary = json.loads((trained[0] / "summary.json").read_text())
    keys = "top1 top5 loss bit_flops bit_flops_std target_bit_flops mean_width params epochs"
    assert all(isinstance(summary[key], int | float) for key in [*keys.split(), "seconds", "seed"])
    assert summary["params"] == sum(
        p.numel() for p in timm.create_model("resnet20_cifar", in_chans=1).parameters()
    )


def test_metrics_have_every_figure_of_the_contract(trained):
    (line,) = (trained[0] / "metrics.jsonl").read_text().splitlines()
    keys = "epoch train_loss val_top1 val_bit_flops mean_width lr seconds"
    assert all(isinstance(json.loads(line)[key], int | float) for key in keys.split())


@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
def test_checkpoints_load_without_running_code(trained, name):
    content = torch.load(trained[0] / name, weights_only=True)
    assert content["epoch"] == 1
    assert any(key.endswith("layer3.2.conv2.weight") for key in content["model"])


def test_training_prints_the_result(trained):
    folder, _, process = trained
    summary = json.loads((folder / "summary.json").read_text())
    assert f"{summary['top1']:.2f} %" in process.stdout
    assert f"{summary['bit_flops'] / 1e6:.3f} M" in process.stdout
    assert all(name in process.stdout for name in summary["width_counts"])
    assert process.stderr == ""


def test_evaluation_repeats_the_last_validation_to_the_last_digit(trained, measured):
    metrics = json.loads((trained[0] / "metrics.jsonl").read_text())
    figures, _ = measured
    for key in ("top1", "top5", "loss", "bit_flops", "bit_flops_std"):
        assert figures[key] == metrics[f"val_{key}"]
    assert figures["mean_width"] == metrics["mean_width"]


def test_evaluation_prints_the_result_and_where_it_is(trained, measured):
    figures, process = measured
    assert f"{figures['top1']:.2f} %" in process.stdout
    assert str(trained[0] / "per_sample.csv") in process.stdout
    assert process.stderr == ""


@pytest.fixture(scope="module")
def rows(trained, measured):
    with (trained[0] / "per_sample.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_add_up_to_the_figures(rows, measured):
    figures, _ = measured
    assert [int(row["index"]) for row in rows] == list(range(360))
    assert 100 * sum(int(row["correct"]) for row in rows) / 360 == figures["top1"]
    assert all((row["label"] == row["prediction"]) == (row["correct"] == "1") for row in rows)
    cost = torch.tensor([float(row["bit_flops"]) for row in rows], dtype=torch.float64)
    assert cost.mean().item() == pytest.approx(figures["bit_flops"], rel=1e-12)
    assert cost.std(correction=0).item() == pytest.approx(figures["bit_flops_std"], rel=1e-12)
    for name, counts in figures["width_counts"].items():
        assert {w: sum(row[name] == w for row in rows) for w in ("2", "3", "4")} == counts


def macs_of_resnet20():
    """Multiply-accumulates of each layer for one image of 8 x 8, from its output's shape."""
    model, macs = timm.create_model("resnet20_cifar", in_chans=1), {}

    def hook(name, module):
        def count(_, args, output):
            macs[name] = output[0].numel() * module.weight[0].numel()

        module.register_forward_hook(count)

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            hook(name, module)
    model.eval()(torch.zeros(1, 1, 8, 8))
    return macs


def test_widths_of_each_image_give_its_cost(rows):
    macs = macs_of_resnet20()
    routed = list(rows[0])[6:]
    assert routed == [f"layer{s}.{b}.conv{c}" for s in (2, 3) for b in (0, 1, 2) for c in (1, 2)]
    static = macs.keys() - {*routed, "conv1", "linear"}
    constant = 9 * sum(macs[name] for name in static)
    for row in rows:
        expected = constant + sum(macs[name] * int(row[name]) ** 2 for name in routed)
        assert float(row["bit_flops"]) == expected


def test_same_command_returns_the_complete_run_at_once(trained, command):
    folder, settings, _ = trained
    files = [path for path in folder.iterdir() if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    settings = [s for s in settings if not s.startswith("hydra")]
    again = command("train.py", *settings, f"hydra.run.dir={folder}")
    assert again.status == 0
    assert "complete" in again.out
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_other_settings_in_the_same_folder_are_refused(trained, command):
    folder, settings, _ = trained
    summary = (folder / "summary.json").read_bytes()
    settings = [s for s in settings if not s.startswith("hydra")]
    other = command("train.py", *settings, "seed=5", f"hydra.run.dir={folder}")
    assert other.status == 1
    (line,) = other.err
    assert line.startswith(f"error: {folder} holds a run with seed=0, not 5: choose another")
    assert (folder / "summary.json").read_bytes() == summary


def test_refused_start_leaves_the_runs_configuration(trained, command):
    folder, settings, _ = trained
    before = {path: path.read_text() for path in (folder / ".hydra").iterdir()}
    settings = [s for s in settings if not s.startswith("hydra")]
    command("train.py", *settings, "seed=6", f"hydra.run.dir={folder}")
    assert {path: path.read_text() for path in (folder / ".hydra").iterdir()} == before


def test_refused_start_leaves_a_run_without_its_last_checkpoint_as_it_is(
    trained, command, tmp_path
):
    folder, settings, _ = trained
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run/last.pt").unlink()
    before = sorted(tmp_path.rglob("*"))
    assert command("train.py", *settings, "optim.lr=-1").status == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_run_folders_are_named_without_quotes(trained, command, tmp_path):
    name = "quant=lsq,quant.widths=[2,3],optim.lr=0.1"
    shutil.copytree(trained[0], tmp_path / "runs" / name)
    assert command("eval.py", f"checkpoint=runs/{name}").status == 0
    assert (tmp_path / "runs" / name / "eval.json").exists()
    again = command("train.py", *trained[1], f"hydra.run.dir=runs/{name}")
    assert f"runs/{name} holds this run, complete" in again.out
    missing = command("eval.py", "checkpoint=runs/quant=lsq")
    assert missing.status == 1
    assert missing.err == ["error: checkpoint runs/quant=lsq does not exist"]
    assert command("eval.py", "checkpoint='runs/quant=lsq'").err == missing.err
    (line,) = command("train.py", "model.name=a=b").err
    assert "'model.name=a=b' is not NAME=VALUE" in line
    assert "needs quotes of its own" in line


def test_evaluation_is_one_at_a_time(command, tmp_path):
    result = command("eval.py", "-m", "checkpoint=run", "budget=2.5,3")
    assert (result.status, result.err) == (
        1,
        ["error: eval.py takes no -m: start it once for each"],
    )
    assert not list(tmp_path.iterdir())


def test_evaluation_leaves_nothing_but_its_files(trained, command, tmp_path):
    result = command("eval.py", f"checkpoint={trained[0]}", f"output={tmp_path}/out")
    assert result.status == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"eval.json", "per_sample.csv"}


def test_budget_curve_and_controls(trained, command, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluated, "SEARCHED", 100)  # images for the best fixed routing
    asked = "budget=3.1", "curve=true", "controls=true", "split=test"
    result = command("eval.py", f"checkpoint={trained[0]}", f"output={tmp_path}/out", *asked)
    assert result.status == 0
    figures = json.loads((tmp_path / "out/eval.json").read_text())
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"eval.json", "per_sample.csv", "curve.csv", "curve.png", "curve.pdf"}
    assert figures["budget"] == 3.1
    assert figures["budget_calibration"]["bit_flops"] <= figures["budget_bit_flops"]
    with (tmp_path / "out/curve.csv").open(newline="") as file:
        points = {float(row["budget_lambda"]): row for row in csv.DictReader(file)}
    assert float(points[figures["budget_lambda"]]["top1"]) == figures["top1"]
    assert 0.0 in points
    gain = f"{figures['controls']['instance_gain']['points']:+.2f} points"
    assert gain in result.out and "shuffled, mean of 5" in result.out


def test_cascade(trained, command, tmp_path):
    asked = "budget=2.6", "cascade.budget=3.4"
    result = command("eval.py", f"checkpoint={trained[0]}", f"output={tmp_path}/out", *asked)
    assert (result.status, result.err) == (0, [])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cascade.json"]
    points = json.loads((tmp_path / "out/cascade.json").read_text())["points"]
    assert all(f" {point['top1']:.2f} " in result.out for point in points)
    assert all(len(line) <= 80 for line in result.out.splitlines() if "/" not in line)


def test_mistake_in_a_process_of_its_own(tmp_path):
    process = start("train.py", "optim.lr=-1", folder=tmp_path)
    assert process.returncode == 1
    assert process.stderr == "error: optim.lr -1.0 must be above 0\n"
    assert process.stdout == ""


def test_default_run_folder_is_named_after_the_changes(command, tmp_path):
    result = command("train.py", *TINY, "trainer.epochs=0", "seed=7")
    assert result.status == 0
    assert (tmp_path / "runs/data.size=8,seed=7,trainer.epochs=0/summary.json").exists()


def test_interruption_is_no_error(command, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train", interrupted)
    result = command("train.py")
    assert result.status == 130
    assert result.err == ["interrupted; the same command continues"]


def test_errors_of_the_program_keep_their_traceback(command, monkeypatch):
    def broken(*args):
        raise ValueError("a bug")

    monkeypatch.setattr(loop, "train", broken)
    with pytest.raises(ValueError, match="a bug"):
        command("train.py")


def test_traceback_of_a_mistake_can_be_asked_for(command, monkeypatch):
    monkeypatch.setenv(cli.TRACEBACK, "1")
    with pytest.raises(dqnet.UserError, match=r"optim\.lr"):
        command("train.py", "optim.lr=-1")


# Names of run folders


def test_name_of_the_default_run():
    assert cli.run_name([]) == "default"


def test_name_is_what_was_typed():
    assert cli.run_name(["quant=lsq", "quant.widths=[3,4]"]) == "quant.widths=[3,4],quant=lsq"


def test_order_does_not_matter():
    overrides = ["seed=1", "quant=lsq", "+experiment=x", "~loss.alpha"]
    assert cli.run_name(overrides) == cli.run_name(overrides[::-1])


@pytest.mark.parametrize(
    "circumstance",
    [
        "trainer.device=cuda:1",
        "++trainer.device=cpu",
        "trainer.progress=false",
        "trainer.checkpoint_minutes=1",
        "data.workers=3",
        "data.download=true",
        "logger=wandb",
        "logger.project=x",
    ],
)
def test_circumstances_are_no_part_of_the_name(circumstance):
    assert cli.run_name([circumstance]) == "default"
    assert cli.run_name(["seed=1", circumstance]) == "seed=1"


@pytest.mark.parametrize(
    "override", ["data.root=/a/b", "data.root='a b'", "model.name=a:b", "data.root=..", "x=a\nb"]
)
def test_name_is_one_safe_component(override):
    name = cli.run_name([override])
    assert not set(name) & set("/\\:*?\"'<>|\n $")
    assert name not in (".", "..")


@pytest.mark.parametrize(
    "a, b",
    [
        ("data.root=/a/b", "data.root=/a-b"),
        ("data.root=/a/b", "data.root=-a-b"),
        (f"model.name={'x' * 200}", f"model.name={'x' * 201}"),
    ],
)
def test_names_of_different_runs_differ(a, b):
    assert cli.run_name([a]) != cli.run_name([b])


@pytest.mark.parametrize("letter", ["x", "é", "数"])
def test_name_fits_a_file_system(letter):
    name = cli.run_name([f"model.args.{letter * 9}{i}={i}" for i in range(200)])
    assert len(name.encode()) <= 255
    assert letter in name
