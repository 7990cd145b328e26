"""The command line from end to end, and one line for every mistake."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

import dqnet
from dqnet import cli
from dqnet.engine import train as loop

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
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.*")}
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


def test_evaluation_leaves_nothing_but_its_files(trained, command, tmp_path):
    result = command("eval.py", f"checkpoint={trained[0]}", f"output={tmp_path}/out")
    assert result.status == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"eval.json", "per_sample.csv"}


def test_budget_curve_and_controls(trained, command, tmp_path):
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


# Mistakes: the arguments, and what the line has to name


def assert_one_line(result, parts):
    assert result.status == 1
    (line,) = result.err
    assert line.startswith("error: ")
    assert [part for part in parts if part not in line] == []


no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
MISTAKES = [
    # names
    ("model=resnet20_cifr", ["model 'resnet20_cifr'", "'resnet20_cifar'", "model.name="]),
    ("model.name=resnet20_cifr", ["model 'resnet20_cifr'", "'resnet20_cifar'"]),
    ("model=[resnet18,nope]", ["model 'nope'", "resnet20_cifar"]),
    ("quant=dorifa", ["quant 'dorifa'", "'dorefa'"]),
    ("quant.quantizer=dorifa", ["quantizer 'dorifa'", "'dorefa'"]),
    ("quant/controller=papr", ["quant/controller 'papr'", "'paper'"]),
    ("data=cifar", ["data 'cifar'", "'cifar10'", "'cifar100'"]),
    ("experiment=nope", ["experiment 'nope'"]),
    ("optim=sdg", ["optim 'sdg'", "'sgd'"]),
    ("optim.name=sgdd", ["optimizer 'sgdd'", "'sgd'"]),
    ("optim.schedule=cosin", ["schedule 'cosin'", "'cosine'"]),
    ("loss.penalty=bit_flop", ["penalty 'bit_flop'", "'bit_flops'"]),
    ("loss=3", ["loss '3'", "bit_flops", "mean_width"]),
    ("logger=wandbb", ["logger 'wandbb'", "'wandb'"]),
    ("logger.name=wandbb", ["logger 'wandbb'", "'wandb'"]),
    ("logger=wandb logger.mode=of", ["logger.mode 'of'", "'offline'"]),
    ("trainer.precision=fp16", ["precision 'fp16'", "'bf16'"]),
    ("hydra/launcher=jobib", ["hydra/launcher 'jobib'", "'basic'"]),
    # settings
    ("optim.lrr=1", ["setting 'optim.lrr'", "'optim.lr'"]),
    ("trainr.epochs=1", ["setting 'trainr.epochs'", "'trainer.epochs'"]),
    ("+optim.lrr=1", ["setting 'optim.lrr'", "'optim.lr'"]),
    ("~optim.lr", ["optim.lr", "missing"]),
    ("optim.lr", ["'optim.lr' has no value", "NAME=VALUE"]),
    ("=3", ["'=3' has no name", "NAME=VALUE"]),
    ("model=3", ["model '3'", "resnet20_cifar", "model.name="]),
    ("optim=null", ["optim 'null'", "sgd"]),
    ("optim.lr=[1", ["[1"]),
    ("quant.controller=paper", ["quant.controller is a table", "quant/controller=NAME"]),
    ("loss.new=1", ["setting 'loss.new'"]),
    # types
    ("trainer.epochs=many", ["trainer.epochs", "'many'", "Integer"]),
    ("trainer.epochs=1.5", ["trainer.epochs", "'1.5'", "Integer"]),
    ("trainer.epochs=null", ["trainer.epochs", "None"]),
    ("optim.lr=fast", ["optim.lr", "'fast'", "Float"]),
    ("trainer.channels_last=perhaps", ["trainer.channels_last", "'perhaps'", "bool"]),
    ("data.mean=0.5", ["data.mean: takes a list"]),
    # widths
    ("quant.widths=[]", ["widths is empty", "(2, 3, 4)"]),
    ("quant.widths=[4,2]", ["widths (4, 2)", "ascending", "(2, 4)"]),
    ("quant.widths=[3,3]", ["widths (3, 3)", "without repeats", "(3,)"]),
    ("quant.widths=[0,2]", ["width 0", "1 to 16"]),
    ("quant.widths=[2,17]", ["width 17", "1 to 16"]),
    ("quant.widths=[32]", ["width 32", "quant=none", "1 to 16"]),
    ("quant.widths=[two]", ["quant.widths", "'two'", "Integer"]),
    ("quant.widths=[2.5]", ["quant.widths", "'2.5'", "Integer"]),
    ("quant.widths=3", ["quant.widths: takes a list", "quant.widths=[3]"]),
    ("quant.widths=two", ["quant.widths: takes a list", "quant.widths=[3]"]),
    # conversion
    ("quant.shared_until=layr1", ["split point 'layr1'", "'layer1'"]),
    ("quant.shared_until=layer3", ["split point 'layer3' leaves nothing to route", "earlier"]),
    ("quant.shared_until=linear", ["split point 'linear'", "[N, C, H, W]", "earlier"]),
    ("loss.target_bits=9", ["target_bits=9 cannot be reached", " from ", " to ", " bits"]),
    ("quant.static_width=40", ["width 40", "1 to 16"]),
    ("+quant.options.alfa=1", ["quant.options", "'alfa'"]),
    ("model.name=inception_v3", ["inception_v3 cannot take images of 8 x 8", "data.size"]),
    # ranges
    ("trainer.epochs=-1", ["trainer.epochs -1"]),
    ("trainer.ema=2", ["trainer.ema 2.0", "(0, 1)"]),
    ("seed=-1", ["seed -1", "0"]),
    ("optim.lr=-1", ["optim.lr -1.0", "above 0"]),
    ("optim.warmup_epochs=5000", ["optim.warmup_epochs 5000", "less than trainer.epochs"]),
    ("loss.alpha=-1", ["loss.alpha -1.0", "not be negative"]),
    ("data.batch_size=0", ["data.batch_size", "at least 1"]),
    ("data.val_fraction=1", ["data.val_fraction", "[0, 1)"]),
    ("optim.lr=1e30 quant=none trainer.epochs=1", ["the loss is not finite", "lower optim.lr"]),
    # devices
    pytest.param(
        "trainer.device=cuda", ["trainer.device 'cuda' is not there", "0 GPUs"], marks=no_gpu
    ),
    ("trainer.device=gpu", ["trainer.device 'gpu' is unknown", "auto, cpu, cuda"]),
    # files
    ("data=imagefolder", ["data.root=PATH"]),
    ("data=imagefolder data.root=nowhere", ["data.root nowhere is not a folder"]),
    ("data=imagefolder data.root=empty", ["empty has no folder train/", "train/CLASS/*"]),
    ("data=cifar10 data.size=32 data.root=empty", ["CIFAR10", "data.download=true"]),
    ("model.checkpoint_path=nowhere.pt", ["checkpoint nowhere.pt does not exist"]),
    ("model.checkpoint_path=empty", ["checkpoint empty is a folder", "best.pt"]),
    ("model.checkpoint_path=text.pt", ["text.pt is not a readable PyTorch checkpoint"]),
    ("model.checkpoint_path=half.pt", ["half.pt is not a readable PyTorch checkpoint"]),
    ("model.checkpoint_path=foreign.pt", ["foreign.pt is a checkpoint of another model"]),
    ("model.checkpoint_path=seven.pt", ["seven.pt classifies 7 classes", "10"]),
    ("hydra.run.dir=text.pt", ["text.pt"]),
]


@pytest.fixture(scope="module")
def seven_classes():
    """The content of a checkpoint whose network has seven classes."""
    model = timm.create_model("resnet20_cifar", num_classes=7, in_chans=1)
    content = io.BytesIO()
    torch.save(model.state_dict(), content)
    return content.getvalue()


@pytest.fixture
def files(tmp_path, seven_classes):
    """What the arguments above name."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pt").write_text("hello\n")
    torch.save({"a": torch.ones(3)}, tmp_path / "foreign.pt")
    (tmp_path / "seven.pt").write_bytes(seven_classes)
    (tmp_path / "half.pt").write_bytes(seven_classes[: len(seven_classes) // 2])
    return {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("arguments, parts", MISTAKES)
def test_mistake_in_training_is_one_line_and_leaves_no_folder(
    command, files, tmp_path, arguments, parts
):
    result = command("train.py", "hydra.run.dir=run", *TINY, *arguments.split())
    assert_one_line(result, parts)
    assert {path.name for path in tmp_path.iterdir()} == files


@pytest.mark.parametrize(
    "arguments, parts",
    [
        ("", ["name a checkpoint", "checkpoint=runs/NAME/best.pt"]),
        ("checkpoint=nowhere.pt", ["checkpoint nowhere.pt does not exist"]),
        ("checkpoint=empty", ["checkpoint empty/best.pt does not exist"]),
        ("checkpoint=text.pt", ["text.pt is not a readable PyTorch checkpoint"]),
        ("checkpoint=half.pt", ["half.pt is not a readable PyTorch checkpoint"]),
        ("checkpoint=foreign.pt", ["foreign.pt was not written by train.py"]),
        ("checkpoint=seven.pt split=tset", ["split 'tset'", "'test'"]),
        ("chekpoint=seven.pt", ["setting 'chekpoint'", "'checkpoint'"]),
        ("checkpoint", ["'checkpoint' has no value"]),
        ("=3", ["'=3' has no name"]),
        ("data.batch_size=some", ["data.batch_size", "'some'", "Integer"]),
    ],
)
def test_mistake_in_evaluation_is_one_line(command, files, arguments, parts):
    assert_one_line(command("eval.py", *arguments.split()), parts)


@pytest.mark.parametrize(
    "argument, parts",
    [
        ("trainer.device=gpu", ["trainer.device 'gpu' is unknown"]),
        ("trainer.precision=8", ["trainer.precision '8'"]),
        ("data.batch_size=0", ["data.batch_size", "at least 1"]),
        ("split=val", ["no validation part", "split=test"]),
        ("output=/dev/null/x", ["/dev/null"]),
        ("budget=1.9", ["budget=1.9 cannot be reached", "from 2."]),
        ("budget=cheap", ["budget", "'cheap'", "Float"]),
        ("curve=often", ["curve", "'often'"]),
        ("report=htm", ["report 'htm'", "'html'"]),
    ],
)
def test_mistake_in_evaluating_a_run_is_one_line(command, trained, tmp_path, argument, parts):
    output = [] if argument.startswith("output") else [f"output={tmp_path}/out"]
    result = command("eval.py", f"checkpoint={trained[0]}", argument, *output)
    assert_one_line(result, parts)
    assert not (tmp_path / "out").exists()


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


def test_name_fits_a_file_system():
    assert len(cli.run_name([f"model.args.x{i}={i}" for i in range(200)]).encode()) <= 255
