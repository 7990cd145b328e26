"""A cascade against its two passes, each evaluated alone, and a loop over the images."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy.special import log_softmax, softmax

import dqnet
from dqnet.config import CascadeConfig, EvalConfig, ReportConfig
from dqnet.costs import cost_table
from dqnet.costs.network import static_cost
from dqnet.errors import UserError
from dqnet.evaluation.cascade import (
    SHARES,
    before_routing,
    cascade_evaluation,
    cascade_point,
    is_unsure,
    thresholds,
)
from dqnet.evaluation.evaluate_cascade import evaluate_cascade
from dqnet.evaluation.trained import load_trained
from dqnet.formats import Precision
from dqnet.measurement import Evaluation
from dqnet.plan import LayerPlan

#: cheap and costly, apart enough that the second pass is worth something
CHEAP = ("quant.widths=[2]", "trainer.epochs=2", "data.val_fraction=0.25")
COSTLY = ("quant.widths=[6]", "trainer.epochs=3")
DYNAMIC = ("quant.widths=[2,3,4]", "quant.static_width=3", "data.val_fraction=0.25")


@pytest.fixture(scope="module")
def folders(run):
    forms = {"cheap": CHEAP, "costly": COSTLY, "dynamic": DYNAMIC}
    return {name: run(*settings).folder for name, settings in forms.items()}


@pytest.fixture
def cascade(tmp_path):
    """``cascade(first, second, budgets, key=value, ...)``: what eval.py does."""

    def start(first, second=None, budget=None, second_budget=None, own=(), **changes):
        passes = CascadeConfig(None if second is None else str(second), second_budget, **dict(own))
        config = EvalConfig(checkpoint=str(first), budget=budget, cascade=passes, **changes)
        config.output = config.output or str(tmp_path / "cascade")
        return evaluate_cascade(config, Console(file=io.StringIO(), width=100))

    return start


def evaluation(seed, cost):
    """Of 40 images and 3 classes, with layers of which the first is in full precision."""
    logits = torch.randn(40, 3, generator=torch.Generator().manual_seed(seed)).double()
    labels = torch.arange(40) % 3
    best = logits.topk(3).indices
    layers = (
        LayerPlan("stem", "full", macs=5),
        LayerPlan("conv", "static", (Precision.parse(2),), 7),
    )
    return Evaluation(
        labels=labels,
        top_classes=best,
        top_probabilities=logits.softmax(1).gather(1, best),
        losses=-logits.log_softmax(1)[torch.arange(40), labels],
        cost=torch.full((40,), cost, dtype=torch.float64),
        mean_widths=torch.full((40,), 2.0),
        chosen=torch.empty(40, 0, dtype=torch.long),
        scores=torch.empty(40, 0, 1),
        widths=(2,),
        layers=layers,
        logits=logits.log_softmax(1),
    )


def point_at(threshold, first, second, reused=()):
    """Of a cascade whose second answer replaces the first, from two evaluations."""
    return cascade_point(cascade_evaluation(first, second, is_unsure(threshold, first), reused))


@pytest.mark.parametrize("threshold", [0.0, 0.55, 0.7, 1.0])
@pytest.mark.parametrize(
    "reused, quantized, full_precision",
    [
        ((), 0, 0),
        (
            (LayerPlan("stem", "full", macs=2), LayerPlan("a", "static", (Precision.parse(2),), 1)),
            4,
            2048,
        ),
    ],
    ids=["other network", "same network"],
)
def test_point_is_what_a_loop_over_the_images_gives(threshold, reused, quantized, full_precision):
    first, second = evaluation(0, 28.0), evaluation(1, 63.0)
    point = point_at(threshold, first, second, reused)
    hits, losses, costs, totals = [], [], [], []
    for i in range(40):
        again = first.top_probabilities[i].max() <= threshold
        answer = second if again else first
        hits.append(answer.top_classes[i][0].item() == i % 3)
        losses.append(answer.losses[i].item())
        costs.append(28 + (63 - quantized if again else 0))
        full = 5 * 32 * 32
        totals.append(costs[-1] + full + (full - full_precision if again else 0))
    assert point["share"] == np.mean([cost > 28 for cost in costs])
    assert point["top1"] == pytest.approx(100 * np.mean(hits))
    assert point["loss"] == pytest.approx(np.mean(losses))
    assert point["bit_flops"] == pytest.approx(np.mean(costs))
    assert point["bit_flops_std"] == pytest.approx(np.std(costs))
    assert point["bit_flops_total"] == pytest.approx(np.mean(totals))
    gain = point["instance_gain"]
    assert gain["points"] == pytest.approx(point["top1"] - point["shuffled_top1"])
    assert gain["low"] <= gain["points"] <= gain["high"]
    if threshold in (0.0, 1.0):  # none or all run twice: there is no choice to shuffle
        assert gain == {"points": 0, "low": 0, "high": 0}


def test_confidence_that_knows_what_is_wrong_gains():
    """A second pass that is always right, a first one that is wrong where it is unsure."""
    first, second = evaluation(0, 28.0), evaluation(1, 63.0)
    probabilities = first.top_probabilities.clone()
    probabilities[:, 0] = torch.where(first.correct, 0.9, 0.5)
    first = replace(first, top_probabilities=probabilities)
    second = replace(second, top_classes=second.labels[:, None].expand(40, 3))
    wrong = 1 - first.correct.double().mean().item()
    again = first.confidence <= 0.7
    point = cascade_point(cascade_evaluation(first, second, again))
    assert point["top1"] == 100 and point["share"] == pytest.approx(wrong)
    # Of the wrong ones only their share is drawn by chance, up to five permutations' luck.
    assert point["instance_gain"]["points"] == pytest.approx(100 * wrong * (1 - wrong), abs=8)
    assert point["instance_gain"]["low"] > 0


def test_thresholds_leave_the_shares_below():
    confidence = torch.rand(1000, generator=torch.Generator().manual_seed(0)).double()
    found = thresholds(confidence)
    assert found[0] == 0 and found[-1] == 1
    assert [(confidence <= value).double().mean().item() for value in found] == list(SHARES)


def test_thresholds_of_few_images():
    found = thresholds(torch.tensor([0.5, 0.9]).double(), (0.0, 0.5, 1.0))
    assert found == pytest.approx([0, 0.7, 1])
    assert thresholds(torch.tensor([0.9]).double(), (0.0, 0.4, 1.0)) == [0, 1]


@torch.no_grad()
def logits_of(folder, split="test", view=lambda x: x):
    """``[N, C]`` and labels ``[N]``, of a static network, straight from its model."""
    console = Console(file=io.StringIO())
    trained = load_trained(str(folder), EvalConfig(split=split), console)
    trained.model.eval()
    parts = [(trained.model(view(x)).logits.double(), y) for x, y in trained.held_out]
    z, labels = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    return z, labels


def expected(point, first, second, labels, combine):
    """Share that runs twice and top-1, by the formula."""
    temperatures, weight = point["temperatures"], point["weight"]
    one, two = (log_softmax(z / t, 1) for z, t in zip((first, second), temperatures, strict=True))
    again = np.exp(one).max(1) <= point["threshold"]
    both = two if combine == "replace" else weight * one + (1 - weight) * two
    answers = np.where(again[:, None], both, one).argmax(1)
    return again.mean(), 100 * (answers == labels).mean()


@pytest.mark.parametrize("combine", ["committee", "replace"])
@pytest.mark.parametrize("split", ["test", "val"])
def test_points_follow_from_both_networks_logits(run, folders, cascade, split, combine):
    costly = run("quant.widths=[6]", "trainer.epochs=3", "data.val_fraction=0.25").folder
    results = cascade(folders["cheap"], costly, split=split, own={"combine": combine})
    first, labels = logits_of(folders["cheap"], split)
    second, _ = logits_of(costly, split)
    cost, more = (results[name]["bit_flops"] for name in ("first", "second"))
    assert len(results["points"]) > 5
    for point in results["points"]:
        share, top1 = expected(point, first, second, labels, combine)
        assert point["share"] == pytest.approx(share)
        assert point["top1"] == pytest.approx(top1)
        assert point["bit_flops"] == pytest.approx(cost + share * more)
    assert results["reused_bit_flops"] == 0
    assert results["points"][0]["top1"] == results["first"]["top1"]
    if combine == "replace":
        assert results["points"][-1]["top1"] == results["second"]["top1"]


def test_numbers_come_from_images_that_are_not_measured(folders, cascade):
    """Temperatures have the least cross-entropy there, and thresholds are confidences there."""
    results = cascade(folders["cheap"], folders["costly"])
    z, labels = logits_of(folders["cheap"], "val")
    assert results["calibration"] == {"images": len(labels), "split": "val"}

    def loss(temperature):
        return -log_softmax(z / temperature, 1)[np.arange(len(labels)), labels].mean()

    best = min(np.geomspace(0.1, 10, 2001), key=loss)
    confidence = softmax(z / results["points"][0]["temperatures"][0], 1).max(1)
    for point in results["points"]:
        assert point["temperatures"][0] == pytest.approx(best, rel=0.01)
    ordered = np.sort(confidence)
    middles = (ordered[1:] + ordered[:-1]) / 2
    for point in results["points"][1:-1]:
        assert np.isclose(middles, point["threshold"], rtol=1e-5).any()


def test_a_second_look_of_the_same_network(folders, cascade):
    results = cascade(folders["cheap"], own={"view": "mirror"})
    first, labels = logits_of(folders["cheap"])
    second, _ = logits_of(folders["cheap"], view=lambda x: x.flip(-1))
    for point in results["points"]:
        share, top1 = expected(point, first, second, labels, "committee")
        assert (point["share"], point["top1"]) == pytest.approx((share, top1))
        assert point["bit_flops"] == pytest.approx((1 + share) * results["first"]["bit_flops"])


def test_one_network_at_two_budgets_pays_for_its_shared_layers_once(
    folders, measure, cascade, tmp_path
):
    results = cascade(folders["dynamic"], budget=2.6, second_budget=3.4)
    cost = []
    for name, budget in (("first", 2.6), ("second", 3.4)):
        figures = measure(folders["dynamic"], output=str(tmp_path / name), budget=budget)
        assert results[name]["bit_flops"] == pytest.approx(figures["bit_flops"])
        assert results[name]["top1"] == figures["top1"]
        cost.append(figures)
    # layer1's two convolutions, 16 to 16 channels, 3 x 3, on 8 x 8 pixels, at three bits
    shared = 2 * 16 * 16 * 9 * 64 * 3**2
    stem = 16 * 9 * 64 * 32**2
    assert results["reused_bit_flops"] == shared
    last = results["points"][-1]
    assert last["share"] == 1
    assert last["bit_flops"] == pytest.approx(sum(c["bit_flops"] for c in cost) - shared)
    totals = sum(c["bit_flops_total"] for c in cost)
    assert last["bit_flops_total"] == pytest.approx(totals - shared - stem)


def test_what_is_reused_is_the_same_in_both_passes():
    """No layer before the first routed one sees the routing."""
    import timm

    net = timm.create_model("resnet18", num_classes=10)
    model = dqnet.quantize(net, torch.zeros(1, 3, 32, 32), widths=(2, 4), shared_until="layer1")
    model.eval()
    names = [layer.name for layer in model.layers]
    before = names[: [layer.role for layer in model.layers].index("routed")]
    assert before and "layer2.0.downsample.0" not in before
    images, seen = torch.randn(2, 3, 32, 32), {name: [] for name in before}
    for name in before:
        layer = model.backbone.get_submodule(name)
        layer.register_forward_hook(lambda _m, _i, out, name=name: seen[name].append(out))
    for chosen in (0, 1):
        routing = torch.zeros(2, *cost_table(model).shape)
        routing[..., chosen] = 1
        model(images, routing=routing)
    for name, outputs in seen.items():
        assert len(outputs) == 2 and torch.equal(*outputs), name
    static = sum(layer.macs for layer in model.layers[: len(before)] if layer.role == "static")
    assert [layer.name for layer in before_routing(model.layers)] == before
    assert static_cost(before_routing(model.layers)) == static * 4**2


def test_only_its_own_file_is_written(folders, cascade, tmp_path):
    results = cascade(folders["cheap"], folders["costly"])
    assert [path.name for path in (tmp_path / "cascade").iterdir()] == ["cascade.json"]
    assert json.loads((tmp_path / "cascade/cascade.json").read_text()) == results


@pytest.mark.parametrize(
    ("first", "second", "changes", "message"),
    [
        ("cheap", "cheap", {}, r"both passes of the cascade are .*best.pt at one budget"),
        ("dynamic", None, {"budget": 3, "second_budget": 3}, "both passes of the cascade"),
        ("dynamic", None, {"second_budget": 9}, "budget=9 cannot be reached"),
        ("cheap", "costly", {"second_budget": 3}, "budget needs a dynamic network"),
        ("cheap", "none", {}, "none.* does not exist"),
        ("cheap", "costly", {"curve": True}, "an evaluation of its own: start it without curve"),
        ("cheap", "costly", {"report": ReportConfig("html")}, "start it without report"),
        ("cheap", "costly", {"own": {"view": "upside"}}, "cascade.view 'upside'.*mirror"),
        ("cheap", "costly", {"own": {"combine": "sum"}}, "cascade.combine 'sum'.*committee"),
        ("cheap", "costly", {"own": {"share": 1.5}}, r"cascade.share 1.5 must be .* in \[0, 1\]"),
        ("dynamic", None, {"second_budget": 3, "own": {"share": 0.2}}, "two networks or two views"),
    ],
)
def test_errors(folders, cascade, tmp_path, first, second, changes, message):
    paths = {"none": tmp_path / "none.pt", None: None, **folders}
    with pytest.raises(UserError, match=message):
        cascade(paths[first], paths[second], **changes)
    assert not (tmp_path / "cascade").exists()


def test_full_precision_costs_nothing_to_save(run, folders, cascade):
    with pytest.raises(UserError, match="is in full precision: a cascade saves Bit-FLOPs"):
        cascade(folders["cheap"], run("quant=none").folder)


def test_other_images(run, folders, cascade):
    """A validation part of its own is no other network's."""
    other = run("quant.widths=[6]", "data.val_fraction=0.5").folder
    with pytest.raises(UserError, match="are measured on different images"):
        cascade(folders["cheap"], other, split="val")


def test_other_classes(run, cascade, image_folder, tmp_path):
    """Their labels may be the same numbers."""
    settings = "data=imagefolder", "data.size=8", "trainer.epochs=0", "data.workers=0"
    pets, birds = (
        run(*settings, f"quant.widths=[{bits}]", f"data.root={image_folder(*names).rename(root)}")
        for bits, root, names in (
            (2, tmp_path / "pets", ("cat", "dog")),
            (6, tmp_path / "birds", ("duck", "owl")),
        )
    )
    with pytest.raises(UserError, match="are measured on different images"):
        cascade(pets.folder, birds.folder)
