"""A cascade that was saved is evaluated like a network: files, figures, page, a cascade of it."""

import csv
import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy.special import log_softmax

import dqnet
from dqnet.config import CascadeConfig, EvalConfig
from dqnet.costs.network import bit_flops
from dqnet.errors import UserError
from dqnet.evaluation.evaluate_cascade import evaluate_cascade
from dqnet.evaluation.trained import load_trained
from dqnet.training.checkpoint import load_checkpoint

CHEAP = ("quant.widths=[2]", "trainer.epochs=2", "data.val_fraction=0.25")
DYNAMIC = ("quant.widths=[2,3,4]", "quant.static_width=3", "data.val_fraction=0.25")


def saved(first, folder, second=None, share=0.3, **own):
    """The folder of a cascade of run folders."""
    passes = CascadeConfig(None if second is None else str(second), share=share, **own)
    config = EvalConfig(checkpoint=str(first), cascade=passes, output=str(folder))
    evaluate_cascade(config, Console(file=io.StringIO()))
    return folder / "cascade"


def load(folder):
    return load_trained(str(folder), EvalConfig(), Console(file=io.StringIO()))


@pytest.fixture(scope="module")
def cheap(run):
    return run(*CHEAP).folder


@pytest.fixture(scope="module")
def dynamic(run):
    return run(*DYNAMIC).folder


@pytest.fixture(scope="module")
def look(cheap, tmp_path_factory):
    """The cheap network, which looks again at what it is unsure of."""
    return saved(cheap, tmp_path_factory.mktemp("look"), view="mirror")


@pytest.fixture(scope="module")
def pair(cheap, dynamic, tmp_path_factory):
    """The cheap network, then the dynamic one at the mirrored image."""
    return saved(cheap, tmp_path_factory.mktemp("pair"), dynamic, view="mirror")


def rows_of(folder):
    with (folder / "per_sample.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@torch.no_grad()
def outputs_of(trained):
    """Of the module itself, batch by batch: what it answers, how often images ran, their cost."""
    trained.model.eval()
    parts = [trained.model(images) for images, _ in trained.held_out]
    return [torch.cat(part).numpy() for part in zip(*parts, strict=True)]


@pytest.mark.parametrize("name", ["look", "pair"])
def test_files_say_what_the_module_does(request, measure, tmp_path, name):
    folder = request.getfixturevalue(name)
    results = measure(folder, output=str(tmp_path), controls=True, curve=True)
    trained = load(folder)
    assert isinstance(trained.model, dqnet.Cascade)
    logits, passes, cost = outputs_of(trained)
    rows = rows_of(tmp_path)
    labels = np.array([int(row["label"]) for row in rows])
    assert [int(row["prediction"]) for row in rows] == logits.argmax(1).tolist()
    assert [int(row["passes"]) for row in rows] == passes.tolist()
    assert [float(row["bit_flops"]) for row in rows] == pytest.approx(cost.tolist())
    assert results["top1"] == pytest.approx(100 * (logits.argmax(1) == labels).mean())
    assert results["loss"] == pytest.approx(-logits[np.arange(len(labels)), labels].mean())
    assert results["bit_flops"] == pytest.approx(cost.mean())
    assert results["costs"]["bit_flops"] == pytest.approx(cost.mean())
    assert results["cascade"]["share"] == (passes == 2).mean() and 0 < (passes == 2).mean() < 1
    for row in rows:
        second = [value for key, value in row.items() if key.startswith("second.")]
        assert (set(second) == {"none"}) == (row["passes"] == "1")
        assert row["first.layer1.0.conv1"] == "2"
    with (tmp_path / "curve.csv").open(newline="") as file:
        curve = list(csv.DictReader(file))
    own = [row for row in curve if float(row["threshold"]) == results["cascade"]["threshold"]]
    assert [float(row["top1"]) for row in own] == [results["top1"]]
    assert [float(curve[end]["share"]) for end in (0, -1)] == [0, 1]


def test_controls_are_other_images_run_twice(look, cheap, measure, tmp_path):
    results = measure(look, output=str(tmp_path), controls=True)
    controls = results["controls"]
    alone = measure(cheap, output=str(tmp_path / "alone"))
    assert controls["own"]["top1"] == results["top1"]
    assert controls["once"]["top1"] == alone["top1"]
    assert controls["twice"]["bit_flops"] == pytest.approx(2 * alone["bit_flops"])
    # Every permutation lets as many images run twice.
    costs = [draw["bit_flops"] for draw in controls["shuffled"]]
    assert costs == pytest.approx([results["bit_flops"]] * 5)
    mean = np.mean([draw["top1"] for draw in controls["shuffled"]])
    assert controls["instance_gain"]["points"] == pytest.approx(results["top1"] - mean)
    mean = np.mean([draw["loss"] for draw in controls["shuffled"]])
    assert controls["loss_gain"]["points"] == pytest.approx(mean - results["loss"])


@torch.no_grad()
def test_a_cascade_of_a_cascade(look, dynamic, measure, tmp_path):
    """Three stages: the mirrored image, then another network; each threshold of its own."""
    three = saved(look, tmp_path, dynamic, share=0.2)
    results = measure(three, output=str(tmp_path / "out"))
    trained, alone = load(three), load(dynamic)
    logits, passes, cost = outputs_of(trained)
    inner, outer = trained.model.first, trained.model
    assert isinstance(inner, dqnet.Cascade) and set(passes.tolist()) == {1, 2, 3}
    before, first_passes, first_cost = outputs_of(load(look))
    one = log_softmax(before / outer.temperatures[0].item(), 1)
    again = np.exp(one).max(1) <= outer.threshold.item()
    alone.model.eval()
    seen = [alone.model(images) for images, _ in alone.held_out]
    z = torch.cat([part.logits for part in seen]).numpy()
    two = log_softmax(z / outer.temperatures[1].item(), 1)
    weight = outer.weight.item()
    both = log_softmax(weight * one + (1 - weight) * two, 1)
    np.testing.assert_allclose(logits, np.where(again[:, None], both, one), rtol=1e-4, atol=1e-5)
    more = bit_flops(alone.model, torch.cat([part.routing for part in seen])).numpy()
    np.testing.assert_allclose(cost, first_cost + again * more)
    assert passes.tolist() == (first_passes + again).tolist()
    assert results["bit_flops"] == pytest.approx(cost.mean())
    assert results["top1"] == pytest.approx(
        100 * (logits.argmax(1) == [int(row["label"]) for row in rows_of(tmp_path / "out")]).mean()
    )
    columns = rows_of(tmp_path / "out")[0].keys()
    assert {f"first.{own}.layer1.0.conv1" for own in ("first", "second")} < columns
    assert "second.layer2.0.conv1" in columns


def test_a_pass_keeps_its_budget(dynamic, measure, tmp_path):
    config = EvalConfig(
        checkpoint=str(dynamic),
        budget=2.6,
        cascade=CascadeConfig(budget=3.4, view="mirror", share=0.5),
        output=str(tmp_path),
    )
    found = evaluate_cascade(config, Console(file=io.StringIO()))
    results = measure(tmp_path / "cascade", output=str(tmp_path / "out"))
    cheap, costly = (found[name]["bit_flops"] for name in ("first", "second"))
    assert cheap < costly
    alone = measure(dynamic, output=str(tmp_path / "alone"), budget=2.6)
    both = zip(rows_of(tmp_path / "out"), rows_of(tmp_path / "alone"), strict=True)
    once = [(one["bit_flops"], other["bit_flops"]) for one, other in both if one["passes"] == "1"]
    assert once and all(own == of_alone for own, of_alone in once)
    assert alone["bit_flops"] == pytest.approx(cheap)
    assert results["bit_flops"] > cheap


def test_from_the_command_line(cheap, command, tmp_path):
    shown = command(
        "eval.py", f"checkpoint={cheap}", "cascade.view=mirror", "cascade.share=0.3",
        f"output={tmp_path}",
    )  # fmt: skip
    assert shown.status == 0 and "cascade/best.pt" in shown.out
    out = tmp_path / "out"
    shown = command(
        "eval.py", f"checkpoint={tmp_path}/cascade", "report=html", "controls=true",
        "curve=true", "export=onnx", f"output={out}",
    )  # fmt: skip
    assert shown.status == 0, shown.err
    assert "all images twice" in shown.out and "run twice" in shown.out
    page = (out / "report/index.html").read_text()
    assert "A cascade:" in page and "not run" in page
    assert json.loads((out / "eval.json").read_text())["cascade"]["view"] == "mirror"
    exported = json.loads((out / "export.json").read_text())
    assert exported["same_predictions"] >= 0.9 and exported["same_passes"] >= 0.9


def test_bad_input(look, cheap, command, measure, tmp_path):
    with pytest.raises(UserError, match="is a cascade: it is evaluated, not trained"):
        load_checkpoint(look / "best.pt")
    with pytest.raises(UserError, match="the passes of a cascade have their own"):
        measure(look, budget=2.0)
    with pytest.raises(UserError, match="this one is a cascade"):
        measure(look, sparsity=True)
    shown = command("eval.py", f"checkpoint={look}", "export=qonnx", f"output={tmp_path}")
    assert shown.status == 1 and "a cascade has no form=qonnx" in shown.err[0]
    content = torch.load(look / "best.pt", weights_only=True)
    for key, value, message in (
        ("cascade", {}, "is not a whole cascade"),
        ("cascade", content["cascade"] | {"threshold": torch.zeros(3)}, "holds no threshold"),
        ("cascade", content["cascade"] | {"view": "upside"}, "view 'upside'"),
        ("first", None, "was not written by train.py"),
    ):
        torch.save(content | {key: value}, tmp_path / "bad.pt")
        with pytest.raises(UserError, match=message):
            load(tmp_path / "bad.pt")


def test_the_file_is_two_networks_or_one(look, pair):
    """A second look needs no second set of weights, and nothing of the training is kept."""
    contents = [torch.load(folder / "best.pt", weights_only=True) for folder in (look, pair)]
    assert [content["second"] is None for content in contents] == [True, False]
    for content in (contents[0]["first"], contents[1]["first"], contents[1]["second"]):
        assert "model" in content and not {"optimizer", "random", "history"} & content.keys()


def test_images_that_the_second_network_may_have_seen(cheap, run, tmp_path):
    shown = []
    for settings in (("quant.widths=[6]", "data.val_fraction=0.25"), ("quant.widths=[6]",)):
        second, console = run(*settings).folder, Console(file=io.StringIO(), width=500)
        config = EvalConfig(checkpoint=str(cheap), cascade=CascadeConfig(str(second)))
        config.output = str(tmp_path)
        evaluate_cascade(config, console)
        shown.append(console.file.getvalue())
    assert ["may have seen the images" in text for text in shown] == [False, True]
