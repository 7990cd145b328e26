"""The controls against a network whose answers depend on its routing in a known way."""

import json
import math
from collections import Counter
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from tiny import ROUTED

from dqnet.errors import UserError
from dqnet.evaluation import bootstrap
from dqnet.evaluation.bootstrap import mean_intervals
from dqnet.evaluation.budget import chosen_at
from dqnet.evaluation.controls import (
    SEEDS,
    compare,
    control_routings,
    cost_at_top1,
    derangement,
    fixed_routing,
)
from dqnet.evaluation.routings import Routed, evaluate_routings
from dqnet.measurement import evaluate
from dqnet.network import Output, QuantizedModel, ScoredOutput
from dqnet.search import Journal
from dqnet.training.build import build_model

N, L, K = 60, len(ROUTED), 3
BEST = [1] * L


class Picky(QuantizedModel):
    """Right exactly when every layer runs at the width that the image's first pixel names.

    The second pixel is the label; the controller always chooses as the image wants.
    """

    def forward(self, images, routing=None, with_scores=False):
        wanted = images[:, 0, 0, 0].long()
        scores = F.one_hot(wanted, K).float()[:, None].expand(-1, L, -1)
        used = scores if routing is None else routing
        satisfied = (used.argmax(-1) == wanted[:, None]).all(1)
        answer = images[:, 0, 0, 1].long() + (~satisfied).long()
        logits = 3 * F.one_hot(answer % 10, 10).float()
        return ScoredOutput(logits, used, scores) if with_scores else Output(logits, used)


@pytest.fixture(scope="module")
def built(config):
    torch.manual_seed(0)
    chosen = config("quant.widths=[2,3,4]", "quant.static_width=3")
    return build_model(chosen.model, chosen.quant, 10, (1, 8, 8)).eval()


@pytest.fixture
def picky(built, monkeypatch):
    monkeypatch.setattr(built, "__class__", Picky)
    return built


@pytest.fixture
def wanted():
    """The width index that each image wants, 30, 20 and 10 images, in random order."""
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    return torch.tensor([0] * 30 + [1] * 20 + [2] * 10)[order]


@pytest.fixture
def batches(wanted):
    images = torch.zeros(N, 1, 8, 8)
    labels = torch.arange(N) % 10
    images[:, 0, 0, 0], images[:, 0, 0, 1] = wanted.float(), labels.float()
    return list(zip(images.split(16), labels.split(16), strict=True))


def own_of(model, batches):
    return evaluate(model, batches, lambda x: x, nullcontext)


def answers_of(model, batches, own, routings):
    return evaluate_routings(model, batches, lambda x: x, nullcontext, own, routings)


# What the routings are


@pytest.mark.parametrize("count", [2, 3, 50])
def test_nobody_keeps_the_own_routing(count):
    for seed in range(20):
        order = derangement(count, seed).tolist()
        assert sorted(order) == list(range(count))
        assert all(i != other for i, other in enumerate(order))


def test_all_derangements_are_equally_likely():
    drawn = Counter(tuple(derangement(4, seed).tolist()) for seed in range(900))
    assert len(drawn) == 9
    assert stats.chisquare(list(drawn.values())).pvalue > 0.01


def test_one_image_has_nobody_to_swap_with():
    with pytest.raises(UserError, match="at least two images"):
        derangement(1, 0)


def test_shuffled_routings_are_the_own_ones_of_others(built, batches):
    own = own_of(built, batches)
    routings = control_routings(own, BEST)
    for seed, shuffled in zip(SEEDS, routings["shuffled"], strict=True):
        assert sorted(shuffled.tolist()) == sorted(own.chosen.tolist())
        assert torch.equal(shuffled, own.chosen[derangement(N, seed)].byte())


def test_random_routings_have_the_frequencies_and_nothing_in_common(picky, batches):
    own = own_of(picky, batches)  # all layers agree, at 30, 20 and 10 images
    routings = control_routings(own, BEST, range(200))
    drawn = routings["random"].flatten(0, 1).long()
    shares = F.one_hot(drawn, K).double().mean(0)
    np.testing.assert_allclose(shares, np.tile([1 / 2, 1 / 3, 1 / 6], (L, 1)), atol=0.02)
    correlation = np.corrcoef(drawn.T.numpy())
    assert np.abs(correlation - np.eye(L)).max() < 0.04


def test_fixed_and_single_routings(picky, batches):
    routings = control_routings(own_of(picky, batches), BEST)
    assert routings["fixed"].tolist() == [[[0] * L] * N]
    assert routings["best_fixed"].tolist() == [[BEST] * N]
    assert routings["single"].tolist() == [[[k] * L] * N for k in range(K)]


def test_the_best_fixed_routing_costs_no_more_and_loses_less(built, batches):
    own = own_of(built, batches)

    class Counted(Journal):
        steps = 0

        @contextmanager
        def progress(self, title, total, done=0):
            def advance():
                self.steps += 1

            yield advance

    journal = Counted()
    found = fixed_routing(built, own, batches, journal)
    assert journal.steps % L == 0 < journal.steps
    tried = torch.tensor([found, *control_routings(own, found)["single"][:, 0].tolist()])
    answers = answers_of(built, batches, own, {"tried": tried.byte()[:, None].expand(-1, N, -1)})
    best, *single = answers["tried"].metrics
    assert best["bit_flops"] <= own.metrics["bit_flops"]
    affordable = [row["loss"] for row in single if row["bit_flops"] <= own.metrics["bit_flops"]]
    assert affordable
    assert all(best["loss"] <= loss + 1e-6 for loss in affordable)
    assert not built.training


# What the network answers with them


@torch.no_grad()
def test_answers_are_those_of_each_image_alone(built, batches):
    generator = torch.Generator().manual_seed(0)
    routings = torch.randint(K, (4, N, L), generator=generator).byte()
    own = own_of(built, batches)
    routed = answers_of(built, batches, own, {"given": routings})["given"]
    images, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    macs = {layer.name: layer.macs for layer in built.layers}
    fixed = 9 * sum(layer.macs for layer in built.layers if layer.role == "static")
    for r, given in enumerate(routings):
        for i in range(0, N, 7):
            one_hot = F.one_hot(given[i : i + 1].long(), K).float()
            logits = built(images[i : i + 1], routing=one_hot).logits
            assert routed.correct[r, i] == (logits.argmax() == labels[i])
            assert routed.losses[r, i].item() == pytest.approx(
                -logits.log_softmax(1)[0, labels[i]].item(), rel=1e-4
            )
            squares = [
                macs[n] * (k + 2) ** 2 for n, k in zip(ROUTED, given[i].tolist(), strict=True)
            ]
            assert routed.cost[r, i] == fixed + sum(squares)


def test_no_image_runs_twice_with_one_routing(built, batches, monkeypatch):
    own = own_of(built, batches)
    routings = control_routings(own, BEST)
    forward, runs = built.forward, []

    def counted(images, **kwargs):
        pixels = images.flatten(1)[:, :2].tolist()
        widths = kwargs["routing"].argmax(-1).tolist()
        # Two images of the set may be equal; within it their order tells them apart.
        runs.extend(zip(map(tuple, pixels), map(tuple, widths), strict=True))
        return forward(images, **kwargs)

    monkeypatch.setattr(built, "forward", counted)
    answers_of(built, batches, own, routings)
    pairs = {
        (i, tuple(row))
        for given in torch.cat([*routings.values()])
        for i, row in enumerate(given.tolist())
    }
    known = {(i, tuple(row)) for i, row in enumerate(own.chosen.tolist())}
    assert len(runs) == len(pairs - known)


def test_own_answers_are_taken_over(built, batches):
    own = own_of(built, batches)
    again = answers_of(built, batches, own, {"own": own.chosen[None].byte()})["own"]
    assert torch.equal(again.correct, own.correct[None])
    assert torch.equal(again.losses, own.losses[None])
    assert torch.equal(again.cost, own.cost[None])


def test_gain_of_a_network_that_needs_its_routing(picky, batches, wanted):
    own = own_of(picky, batches)
    controls = compare(own, answers_of(picky, batches, own, control_routings(own, BEST)))
    # Shuffled, an image is right if and only if the one whose routing it gets wants the same.
    lucky = [(wanted[derangement(N, seed)] == wanted).double().mean().item() for seed in SEEDS]
    assert controls["own"]["top1"] == 100
    assert [row["top1"] for row in controls["shuffled"]] == pytest.approx(
        [100 * share for share in lucky]
    )
    gain = controls["instance_gain"]
    assert gain["points"] == pytest.approx(100 - 100 * np.mean(lucky))
    assert 0 < gain["low"] < gain["points"] < gain["high"] < 100
    # A wrong answer costs 3 nats more than a right one.
    loss = controls["loss_gain"]
    assert loss["points"] == pytest.approx(3 * (1 - np.mean(lucky)), rel=1e-6)
    assert controls["fixed"]["top1"] == 50
    # The best fixed routing that is given, all at the second width, suits 20 of the 60 images.
    assert controls["best_fixed"]["top1"] == pytest.approx(100 / 3)
    assert controls["best_fixed"]["widths"] == [3] * L
    assert controls["benefit"]["points"] == pytest.approx(200 / 3)
    assert controls["benefit"]["low"] < 200 / 3 < controls["benefit"]["high"]
    assert controls["loss_benefit"]["points"] == pytest.approx(3 * 2 / 3, rel=1e-6)
    assert [controls["single"][str(w)]["top1"] for w in (2, 3, 4)] == pytest.approx(
        [100 * 30 / 60, 100 * 20 / 60, 100 * 10 / 60]
    )
    assert {row["bit_flops"] for row in controls["shuffled"]} == {own.metrics["bit_flops"]}
    assert all(row["top1"] < 50 for row in controls["random"])


def test_gain_of_a_network_that_ignores_its_routing_is_zero(picky, batches):
    own = own_of(picky, batches)
    routings = control_routings(own, BEST)
    answers = {
        kind: Routed(given, *(row.expand(len(given), -1) for row in answer))
        for kind, given in routings.items()
        for answer in [(own.correct, own.losses, own.cost)]
    }
    controls = compare(own, answers)
    for name in ("instance_gain", "loss_gain", "benefit", "loss_benefit"):
        gain = controls[name]
        assert (gain["points"], gain["low"], gain["high"]) == (0, 0, 0)


# The interval


@pytest.mark.parametrize("count, confidence", [(40, 0.95), (300, 0.8)])
def test_interval_is_scipys(count, confidence, monkeypatch):
    monkeypatch.setattr(bootstrap, "CONFIDENCE", confidence)
    rng = np.random.default_rng(0)
    values = np.stack([rng.exponential(size=count), rng.normal(3, 5, count)], 1)
    for column, found in enumerate(mean_intervals(values)):
        assert found["points"] == pytest.approx(values[:, column].mean())
        oracle = stats.bootstrap(
            (values[:, column],),
            np.mean,
            n_resamples=20_000,
            confidence_level=confidence,
            method="percentile",
            rng=np.random.default_rng(2),
        ).confidence_interval
        width = oracle.high - oracle.low
        assert found["low"] == pytest.approx(oracle.low, abs=0.03 * width)
        assert found["high"] == pytest.approx(oracle.high, abs=0.03 * width)


def test_interval_is_the_normal_one_for_many_images():
    values = np.random.default_rng(0).choice([-1.0, 0, 0, 0, 1, 1], size=(5000, 1))
    (found,) = mean_intervals(values)
    half = 1.96 * values.std() / math.sqrt(5000)
    assert found["low"] == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert found["high"] == pytest.approx(values.mean() + half, abs=0.05 * half)


def test_interval_is_the_same_every_time():
    values = np.random.default_rng(0).normal(size=(30, 2))
    assert mean_intervals(values) == mean_intervals(values)


# Where shuffled routing is as good


def points(*pairs):
    return [{"bit_flops": cost, "shuffled_top1": top1} for cost, top1 in pairs]


@pytest.mark.parametrize(
    "curve, top1, cost",
    [
        (points((10, 50), (20, 60), (40, 80)), 70, 30),
        (points((10, 50), (20, 60), (40, 80)), 60, 20),
        (points((10, 50), (20, 60)), 40, 10),
        (points((10, 50), (20, 60)), 61, None),
        (points((10, 50), (20, 70), (30, 60), (40, 80)), 65, 17.5),
    ],
)
def test_cost_at_which_shuffled_routing_is_as_good(curve, top1, cost):
    found = cost_at_top1(curve, top1)
    assert found is None if cost is None else found == pytest.approx(cost)


# The command


def test_controls_of_a_run(run, measure, tmp_path):
    folder = run("quant.widths=[2,3,4]", "quant.static_width=3").folder
    figures = measure(folder, output=str(tmp_path), controls=True)
    controls = figures["controls"]
    assert json.loads((tmp_path / "eval.json").read_text()) == figures
    assert controls["own"] == {key: figures[key] for key in ("top1", "loss", "bit_flops")}
    assert [row["seed"] for row in controls["shuffled"]] == list(SEEDS)
    assert {row["bit_flops"] for row in controls["shuffled"]} == {figures["bit_flops"]}
    assert len(controls["random"]) == len(SEEDS)
    assert set(controls["single"]) == {"2", "3", "4"}
    mean = np.mean([row["top1"] for row in controls["shuffled"]])
    assert controls["instance_gain"]["points"] == pytest.approx(figures["top1"] - mean)
    mean = np.mean([row["loss"] for row in controls["shuffled"]])
    assert controls["loss_gain"]["points"] == pytest.approx(mean - figures["loss"])
    best = controls["best_fixed"]
    assert best["bit_flops"] <= figures["bit_flops"]
    assert controls["benefit"]["points"] == pytest.approx(figures["top1"] - best["top1"])
    assert controls["loss_benefit"]["points"] == pytest.approx(best["loss"] - figures["loss"])
    assert controls["shuffled_bit_flops_at_own_top1"] is None
    assert not (tmp_path / "curve.csv").exists()


@pytest.mark.parametrize("part", [slice(3), slice(1, None)])
def test_images_without_an_answer_are_an_error(built, batches, part):
    """Their rows would be whatever the memory held."""
    own = own_of(built, batches)
    with pytest.raises(ValueError, match=rf"images, routings of {N}"):
        answers_of(built, batches[part], own, {"own": own.chosen[None].byte()})


def test_chosen_at_zero_is_what_the_network_chose(built, batches):
    own = own_of(built, batches)
    assert torch.equal(chosen_at(built, own.scores, 0.0), own.chosen)
