"""Training for a cost other than Bit-FLOPs, and evaluations that report all of them."""

import pytest
import torch

from dqnet.costs import find_cost
from dqnet.costs.energy import Energy
from dqnet.costs.rows import read_rows
from dqnet.errors import UserError
from dqnet.network import ScoredOutput
from dqnet.plan import LayerPlan
from dqnet.training.build import build_model
from dqnet.training.objective import Objective

ENERGY = "cost=energy", "loss.cost_options.exponent=1.5", "loss.cost_options.off_chip=0"
BY = Energy(exponent=1.5, off_chip=0)


def objective(config, *overrides):
    chosen = config("quant.widths=[2,3,4]", *overrides)
    model = build_model(chosen.model, chosen.quant, 10, (1, 8, 8))
    return model, Objective(model, chosen.loss)


def test_the_penalty_is_on_the_cost_that_is_named(config):
    model, own = objective(config, *ENERGY, "loss.target_bits=2.5")
    routing = torch.eye(3)[torch.tensor([[0, 1, 2, 2], [1, 1, 1, 1]])].requires_grad_()
    output = ScoredOutput(torch.zeros(2, 10), routing, torch.zeros(2, 4, 3))
    terms = own.terms(output, torch.tensor([0, 1]))
    layers = {layer.name: layer for layer in model.layers}
    price = sum(BY.layer(v, v.precisions[0]) for v in layers.values() if v.role == "static")
    prices = [
        [BY.layer(layer, own_precision) for own_precision in model.precisions]
        for layer in model.routed_layers
    ]
    mean = price + (routing.detach().double() * torch.tensor(prices)).sum((1, 2)).mean()
    assert own.target_bits == 2.5
    expected = float(mean) / own.target - 1
    assert expected > 0 and terms["penalty"].item() == pytest.approx(expected, rel=1e-5)
    terms["penalty"].backward()
    assert (routing.grad[..., 0] < routing.grad[..., 2]).all()


def test_a_run_is_trained_judged_and_evaluated_by_its_cost(run, measure, tmp_path):
    made = run(*ENERGY, "quant.widths=[2,3,4]", "loss.target_bits=3", "data.val_fraction=0.2")
    summary = made.summary
    assert summary["cost"] == "energy" and set(summary["costs"]) == {"bit_flops", "energy", "size"}
    assert summary["costs"]["bit_flops"] == summary["bit_flops"]
    assert "energy" in made.text.split("val top-1")[1].split("\n")[0]
    assert made.metrics[-1]["val_cost"] > 0
    evaluated = measure(made.folder, output=str(tmp_path))
    for key in ("costs", "target_cost", "target_bit_flops", "peak_activation_bytes"):
        assert evaluated[key] == summary[key]


def test_a_static_network_costs_its_target_in_every_model(run):
    for name in ("energy", "size"):
        summary = run("quant.widths=[3]", f"cost={name}", "trainer.epochs=0").summary
        assert summary["costs"][name] == pytest.approx(summary["target_cost"])


def test_a_checkpoint_brings_its_table_along(run, measure, tmp_path):
    plan = run("quant.widths=[3]", "trainer.epochs=0").checkpoint()["plan"]["layers"]
    path = tmp_path / "latency.csv"
    rows = [f"{layer['name']},{bits},{bits}" for layer in plan for bits in (2, 3, 4)]
    path.write_text("\n".join(["layer,precision,cost", *rows]))
    table = "cost=table", f"loss.cost_options.entries={path}", "trainer.epochs=0"
    made = run(*table, "quant.widths=[2,3,4]")
    path.unlink()
    assert made.summary["target_cost"] == 3 * sum(layer["role"] != "full" for layer in plan)
    assert measure(made.folder, output=str(tmp_path))["costs"] == made.summary["costs"]
    path.write_text("\n".join(["layer,precision,cost", *rows[:6]]))
    with pytest.raises(UserError, match=r"table of costs lacks layer 'layer1\.0\.conv2'"):
        run(*table, "quant.widths=[2,3,4]")


def test_an_evaluation_measures_zeros_and_the_energy_without_them(run, measure, tmp_path):
    made = run("quant=lsq", "quant.widths=[4]", "trainer.epochs=0")
    costs = measure(made.folder, output=str(tmp_path), sparsity=True)["costs"]
    assert 0 < costs["energy_without_zeros"] < costs["energy"]
    by = Energy(sparsity=read_rows(tmp_path / "sparsity.csv"))
    layers = [LayerPlan.from_json(line) for line in made.checkpoint()["plan"]["layers"]]
    expected = sum(by.layer(own, own.precisions[0]) for own in layers if own.precisions)
    assert costs["energy_without_zeros"] == pytest.approx(expected)
    made = run("quant=none", "trainer.epochs=0")
    with pytest.raises(UserError, match="sparsity=true needs a quantized network"):
        measure(made.folder, output=str(tmp_path), sparsity=True)


def test_options_of_a_checkpoint_are_never_file_names():
    with pytest.raises(UserError):
        find_cost("table", {"entries": "/etc/passwd"})
