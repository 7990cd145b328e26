"""Weights and inputs of different widths, two of them at one cost: training to report."""

import csv
import json

import numpy as np
import pytest
import torch
from tiny import ROUTED, STATIC

import dqnet
from dqnet.costs import cost_table, relative_costs
from dqnet.costs.network import reachable_bits
from dqnet.errors import UserError
from dqnet.evaluation.budget import Calibration, chosen_at, cost_of
from dqnet.report.page.results import read_results
from dqnet.report.runs import read_run
from dqnet.training.build import build_model

#: weight bits × input bits: 8, 16, 16
MIXED = "quant.widths=[w2a4,w4a4,w2a8]"
#: layers with two, three and four candidates
INCOMPLETE = "quant.layers={layer2.0.conv1:[2,4],layer3.0.conv2:[w2a8,8],layer2.0.conv2:full}"


def built(config, *overrides):
    torch.manual_seed(0)
    chosen = config(*overrides)
    return build_model(chosen.model, chosen.quant, 10, (1, 8, 8)).eval()


def random_scores(model, images=40, seed=0):
    """As the controller gives them: far below all others where a layer lacks a candidate."""
    generator = torch.Generator().manual_seed(seed)
    shape = images, len(model.routed_layers), len(model.precisions)
    scores = torch.randn(shape, generator=generator)
    return scores if model.candidates is None else scores.masked_fill(~model.candidates, -1e30)


def test_costs_are_weight_bits_times_input_bits(config):
    model = built(config, MIXED)
    macs = [layer.macs for layer in model.routed_layers]
    assert cost_table(model).tolist() == [[8 * m, 16 * m, 16 * m] for m in macs]
    assert model.widths == ("w2a4", 4, "w2a8")
    low, high = reachable_bits(model)
    static = sum(layer.macs for layer in model.layers if layer.role == "static")
    total = static + sum(macs)
    assert low == pytest.approx(((16 * static + 8 * sum(macs)) / total) ** 0.5)
    assert high == pytest.approx(4)


def test_a_layer_without_a_candidate_costs_infinitely_much_there(config):
    model = built(config, INCOMPLETE)
    table = cost_table(model)
    assert model.widths == (2, 3, "w2a8", 4, 8) or model.widths == (2, 3, 4, "w2a8", 8)
    for row, layer in zip(table.tolist(), model.routed_layers, strict=True):
        for cost, precision in zip(row, model.precisions, strict=True):
            own = precision in layer.precisions
            assert cost == (layer.macs * precision.bit_product if own else float("inf"))
    assert relative_costs(model)[table.isfinite()].mean() == pytest.approx(1)


@pytest.mark.parametrize("rules", [MIXED, INCOMPLETE])
def test_budgets_hold_where_two_candidates_cost_the_same(config, rules):
    """The λ of a budget spends the most that any λ does within it, found by brute force."""
    model = built(config, rules)
    scores = random_scores(model)
    calibration = Calibration(model, scores)
    budgets = calibration.budgets(9)
    low, high = (dqnet.static_bit_flops(model, bits) for bits in reachable_bits(model))
    assert budgets[0] == pytest.approx(low) and budgets[-1] == pytest.approx(high)
    grid = np.linspace(-60, 60, 20001)
    reached = np.array([cost_of(model, chosen_at(model, scores, g)).mean() for g in grid[::40]])
    for budget in budgets:
        own = calibration.bit_flops(calibration.lambda_for(budget))
        assert own <= budget * (1 + 1e-12)
        assert own >= reached[reached <= budget].max(initial=0) - 1e-6


def test_candidates_of_one_cost_are_chosen_by_score_at_every_price(config):
    model = built(config, MIXED)
    scores = random_scores(model)
    for price in (-5.0, 0.0, 5.0):
        chosen = chosen_at(model, scores, price)
        better = scores[..., 1:].argmax(-1) + 1
        assert torch.equal(chosen[chosen > 0], better[chosen > 0])


def test_where_everything_costs_the_same_there_is_one_budget(config):
    model = built(config, "quant.widths=[w2a8,w4a4,w8a2]")
    calibration = Calibration(model, random_scores(model))
    assert len(set(calibration.budgets(3))) == 1
    assert calibration.lambda_for(calibration.budgets(1)[0]) == 0


@pytest.mark.parametrize("rules", [MIXED, INCOMPLETE])
def test_no_image_runs_at_what_a_layer_lacks(config, rules):
    model, images = built(config, rules), torch.randn(64, 1, 8, 8)
    has = cost_table(model).isfinite()
    for training in (True, False):
        with torch.no_grad():
            routing = model.train(training)(images).routing
        assert (routing.sum(-1) == 1).all()
        assert not (routing.sum(0) * ~has).any()
    if rules == INCOMPLETE:
        k = int((~has[0]).nonzero()[0, 0])
        routing = routing.clone()
        routing[5, 0] = torch.nn.functional.one_hot(torch.tensor(k), len(has[0]))
        with pytest.raises(UserError, match=r"layer 'layer2\.0\.conv1' cannot run at"):
            model(images, routing=routing)


@pytest.fixture(scope="module", params=[MIXED, INCOMPLETE], ids=["mixed", "incomplete"])
def evaluated(request, run, measure):
    made = run(request.param, "trainer.epochs=2", "quant=lsq", "quant.choice_gradient=sampled")
    target = made.summary["target_bit_flops"]
    results = measure(made.folder / "best.pt", curve=True, controls=True)
    return made, target, results


def test_a_network_trains_and_has_a_curve(evaluated):
    made, target, results = evaluated
    assert results["bit_flops"] == made.summary["bit_flops"]
    assert results["target_bit_flops"] == target
    rows = list(csv.DictReader((made.folder / "curve.csv").open()))
    costs = [float(row["bit_flops"]) for row in rows]
    assert costs == sorted(costs) and len(set(costs)) > 5
    widths = list(made.summary["width_counts"]["layer3.0.conv1"])
    assert widths == list(results["controls"]["single"])
    assert sum(made.summary["width_counts"]["layer3.0.conv1"].values()) == 60


def test_its_table_and_files_name_the_precisions(evaluated):
    made, _, _ = evaluated
    assert "w2a8" in made.text and "images at each width" in made.text
    rows = list(csv.DictReader((made.folder / "per_sample.csv").open()))
    names = {row["layer3.0.conv1"] for row in rows}
    assert names <= {str(name) for name in made.summary["width_counts"]["layer3.0.conv1"]}
    plan = json.loads((made.folder / "plan.json").read_text())["layers"]
    by_name = {line["name"]: line for line in plan}
    assert by_name["layer1.0.conv1"]["role"] == "static"
    assert [name for name in STATIC if by_name[name]["role"] != "static"] == []


def test_a_report_is_drawn_from_its_files(evaluated, measure):
    made, _, _ = evaluated
    from dqnet.config import ReportConfig

    measure(made.folder / "best.pt", report=ReportConfig("html"))
    results = read_results(made.folder)
    assert results.widths.shape == (60, len(results.layers))
    for layer, name in enumerate(results.layers):
        counts = made.summary["width_counts"][name]
        expected = sum(dqnet.Precision.parse(w).width * n for w, n in counts.items()) / 60
        assert results.widths[:, layer].mean() == pytest.approx(expected)
    assert "w2a8" in (made.folder / "report/index.html").read_text()


def test_mixed_methods_are_chosen_tensor_by_tensor(config):
    model = built(config, "quant.weight.quantizer=dorefa", "quant.input.quantizer=lsq")
    layer = model.backbone.get_submodule(ROUTED[0])
    names = type(layer.weight_quantizer).__name__, type(layer.input_quantizer).__name__
    assert names == ("DoReFaWeight", "LSQInput")
    model = built(config, "quant=pact", "+quant.input.options.alpha_init=3")
    assert model.backbone.get_submodule(ROUTED[0]).input_quantizer.alpha == 3


def test_a_run_of_a_plan_is_what_the_plan_says(run, tmp_path):
    made = run(MIXED, "trainer.epochs=0")
    record = made.folder / ".hydra"
    record.mkdir()
    (record / "config.yaml").write_text("quant: {quantizer: dorefa, widths: [w2a4, w4a4, w2a8]}")
    assert read_run(made.folder).kind == "dynamic"
