"""The budget knob against brute force over every step of the cost, and against every routing."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import ROUTED

from dqnet.costs import relative_costs
from dqnet.costs.network import reachable_bits
from dqnet.data import ImageArray
from dqnet.errors import UserError
from dqnet.evaluation import trained as trained_module
from dqnet.evaluation.budget import Calibration, chosen_at, cost_of
from dqnet.training.build import build_model

WIDTHS = np.array([2, 3, 4])


@pytest.fixture(scope="module")
def model(config):
    torch.manual_seed(0)
    chosen = config("quant.widths=[2,3,4]", "quant.static_width=3")
    return build_model(chosen.model, chosen.quant, 10, (1, 8, 8)).eval()


@pytest.fixture
def images():
    return torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def random_scores(images, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, len(ROUTED), 3, generator=generator)


def costs(model):
    """Bit-FLOPs of each routed layer at each width, and of the rest, from the layers alone."""
    macs = {layer.name: layer.macs for layer in model.layers}
    routed = np.array([[macs[name] * w * w for w in WIDTHS] for name in ROUTED], dtype=float)
    fixed = 9 * sum(layer.macs for layer in model.layers if layer.role == "static")
    return routed, fixed


def mean_cost(model, scores, budget_lambda):
    routed, fixed = costs(model)
    best = (scores.double().numpy() - budget_lambda * routed / routed.mean()).argmax(-1)
    return fixed + sum(routed[l][best[:, l]] for l in range(len(ROUTED))).mean()  # noqa: E741


def steps(model, scores):
    """A λ inside each step of the cost: between all pairs of neighbouring changes of mind."""
    routed, _ = costs(model)
    relative, s = routed / routed.mean(), scores.double().numpy()
    changes = sorted(
        (s[n, l, k] - s[n, l, j]) / (relative[l, k] - relative[l, j])
        for n in range(len(s))
        for l in range(len(ROUTED))  # noqa: E741
        for j, k in itertools.combinations(range(3), 2)
    )
    inner = [(a + b) / 2 for a, b in itertools.pairwise(changes)]
    return [changes[0] - 1, *inner, changes[-1] + 1]


# The routing at λ


@torch.no_grad()
def test_the_network_runs_with_the_priced_choice(model, images, monkeypatch):
    routed, _ = costs(model)
    plain = model(images, with_scores=True)
    for budget_lambda in (-0.3, 1e-9, 0.2):
        monkeypatch.setattr(model, "prices", budget_lambda * relative_costs(model))
        output = model(images, with_scores=True)
        priced = plain.scores.double().numpy() - budget_lambda * routed / routed.mean()
        assert output.routing.argmax(-1).tolist() == priced.argmax(-1).tolist()
        assert torch.equal(output.scores, plain.scores)
        assert output.routing.dtype == plain.routing.dtype
        given = model(images, routing=output.routing)
        assert torch.equal(given.logits, output.logits)


@torch.no_grad()
@pytest.mark.parametrize("budget_lambda, column", [(1e6, 0), (-1e6, 2)])
def test_a_large_price_leaves_the_cheapest_a_large_reward_the_most_expensive(
    model, images, monkeypatch, budget_lambda, column
):
    monkeypatch.setattr(model, "prices", budget_lambda * relative_costs(model))
    assert (model(images).routing.argmax(-1) == column).all()


def test_training_does_not_know_the_budget(model, images, monkeypatch):
    monkeypatch.setattr(model, "prices", 1e6 * relative_costs(model))
    model.train()
    torch.manual_seed(0)
    routing = model(images).routing
    model.eval()
    assert routing.argmax(-1).unique().numel() == 3


def test_no_routing_that_saves_as_much_has_better_scores(model):
    """Among all 81 routings of an image; below 0, none that spends as much."""
    routed, _ = costs(model)
    scores = random_scores(5)
    every = np.array(list(itertools.product(range(3), repeat=len(ROUTED))))
    cost = sum(routed[l][every[:, l]] for l in range(len(ROUTED)))  # noqa: E741
    for budget_lambda in (-2.0, -0.5, 0.0, 0.3, 1.0, 3.0):
        chosen = chosen_at(model, scores, budget_lambda).numpy()
        for row, mine in zip(scores.double().numpy(), chosen, strict=True):
            total = sum(row[l][every[:, l]] for l in range(len(ROUTED)))  # noqa: E741
            at = (every == mine).all(1).argmax()
            rivals = cost <= cost[at] if budget_lambda >= 0 else cost >= cost[at]
            assert total[at] == pytest.approx(total[rivals].max())


# The λ of a budget


@pytest.mark.parametrize("seed", range(3))
def test_bisection_finds_the_highest_step_within_the_budget(model, seed):
    scores = random_scores(7, seed)
    calibration = Calibration(model, scores)
    reached = [mean_cost(model, scores, step) for step in steps(model, scores)]
    assert reached == sorted(reached, reverse=True)
    between = np.random.default_rng(seed).uniform(min(reached), max(reached), 20)
    # One Bit-FLOP of room for the rounding of the mean.
    for budget in [*(cost + 1 for cost in reached[::5]), *between]:
        budget_lambda = calibration.lambda_for(float(budget))
        best = max(cost for cost in reached if cost <= budget)
        assert mean_cost(model, scores, budget_lambda) == pytest.approx(best, rel=1e-12)
        assert calibration.bit_flops(budget_lambda) == pytest.approx(best, rel=1e-12)


def test_below_the_cheapest_routing_the_cheapest_is_taken(model):
    calibration = Calibration(model, random_scores(7))
    assert (chosen_at(model, random_scores(9, 5), calibration.lambda_for(0.0)) == 0).all()


def test_rounding_does_not_move_an_image_to_another_width(model):
    scores = random_scores(50)
    calibration = Calibration(model, scores)
    budget_lambda = calibration.lambda_for(np.mean(calibration.budgets(2)))
    chosen = chosen_at(model, scores, budget_lambda)
    assert torch.equal(chosen, chosen_at(model, scores, budget_lambda * (1 + 1e-7)))
    assert torch.equal(chosen, chosen_at(model, scores, budget_lambda * (1 - 1e-7)))


def test_budgets_are_even_from_the_cheapest_to_the_most_expensive(model):
    routed, fixed = costs(model)
    budgets = Calibration(model, random_scores(7)).budgets(5)
    ends = fixed + routed[:, 0].sum(), fixed + routed[:, 2].sum()
    np.testing.assert_allclose(budgets, np.linspace(*ends, 5), rtol=1e-12)


def test_scores_without_any_difference(model):
    calibration = Calibration(model, torch.zeros(4, len(ROUTED), 3))
    cheapest, costliest = calibration.budgets(2)
    assert calibration.bit_flops(calibration.lambda_for(costliest)) == costliest
    assert calibration.bit_flops(calibration.lambda_for(costliest - 1)) == cheapest


def test_cost_of_indices_is_that_of_the_layers(model):
    routed, fixed = costs(model)
    chosen = torch.randint(3, (9, len(ROUTED)), generator=torch.Generator().manual_seed(0))
    expected = fixed + sum(routed[l][chosen[:, l]] for l in range(len(ROUTED)))  # noqa: E741
    assert cost_of(model, chosen.byte()).tolist() == expected.tolist()


# The command


@pytest.fixture(scope="module")
def trained(run):
    """``trained(val_fraction)``: a dynamic run of one epoch."""
    wide = "quant.widths=[2,3,4]", "quant.static_width=3"
    runs = {f: run(*wide, f"data.val_fraction={f}").folder for f in (0, 0.25)}
    return runs.__getitem__


@pytest.mark.parametrize("bits", [2.6, 2.9, 3.45])
@pytest.mark.parametrize("fraction, part, count", [(0, "train", 240), (0.25, "val", 60)])
def test_the_mean_image_costs_what_it_may(trained, measure, tmp_path, bits, fraction, part, count):
    figures = measure(trained(fraction), output=str(tmp_path), budget=bits)
    macs = figures["target_bit_flops"] / 9
    calibration = figures["budget_calibration"]
    assert figures["budget_bit_flops"] == pytest.approx(bits**2 * macs)
    assert (calibration["split"], calibration["images"]) == (part, count)
    assert 0.97 * bits**2 * macs < calibration["bit_flops"] <= bits**2 * macs
    assert figures["bit_flops"] == pytest.approx(bits**2 * macs, rel=0.1)
    if part == "val":
        again = measure(trained(fraction), output=str(tmp_path), budget=bits, split="val")
        assert again["bit_flops"] == calibration["bit_flops"]


def test_without_a_budget_nothing_is_calibrated(trained, measure, tmp_path, monkeypatch):
    monkeypatch.setattr(trained_module.Trained, "calibrate", None)
    figures = measure(trained(0), output=str(tmp_path))
    assert (figures["budget"], figures["budget_lambda"]) == (None, 0)


@pytest.mark.parametrize("fraction", [0, 0.25])
def test_the_test_part_has_no_say_in_the_price(trained, measure, tmp_path, monkeypatch, fraction):
    before = measure(trained(fraction), output=str(tmp_path), budget=2.7)
    load = trained_module.load_data

    def with_other_test_images(config):
        splits = load(config)
        test = ImageArray(255 - splits.test.images, splits.test.labels)
        return replace(splits, test=test)

    monkeypatch.setattr(trained_module, "load_data", with_other_test_images)
    after = measure(trained(fraction), output=str(tmp_path), budget=2.7)
    assert after["loss"] != before["loss"]
    for key in ("budget_lambda", "budget_calibration"):
        assert after[key] == before[key]


def test_calibration_does_not_open_the_test_part(trained, measure, tmp_path, monkeypatch):
    batch = trained_module.loaders

    class Closed:
        def __iter__(self):
            raise AssertionError("the test part was read")

    def with_closed_test(*args, **kwargs):
        return replace(batch(*args, **kwargs), test=Closed())

    monkeypatch.setattr(trained_module, "loaders", with_closed_test)
    measure(trained(0.25), output=str(tmp_path), split="val", budget=2.7)
    with pytest.raises(AssertionError, match="the test part was read"):
        measure(trained(0), output=str(tmp_path), budget=2.7)


@pytest.mark.parametrize("bits", [2.0, 3.9, -1.0])
def test_a_budget_out_of_reach_names_what_is_in_reach(model, trained, measure, tmp_path, bits):
    low, high = reachable_bits(model)
    message = rf"budget={bits:g} cannot be reached.*from {low:.3f} to {high:.3f} bits"
    with pytest.raises(UserError, match=message):
        measure(trained(0), output=str(tmp_path / "out"), budget=bits)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "asked, said",
    [
        ({"budget": 3.0}, "budget needs a dynamic network"),
        ({"curve": True}, "curve needs a dynamic network"),
        ({"controls": True, "curve": True}, "curve and controls need a dynamic network"),
    ],
)
@pytest.mark.parametrize(
    "quant, why", [("quant.widths=[3]", "a single width"), ("quant=none", "in full precision")]
)
def test_a_network_without_a_choice(run, measure, tmp_path, quant, why, asked, said):
    folder = run(quant, "trainer.epochs=0").folder
    with pytest.raises(UserError, match=f"{said}: .*{why}"):
        measure(folder, output=str(tmp_path / "out"), **asked)
