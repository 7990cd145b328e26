"""Runs that begin with a search: what they leave, and that they go on after a stop."""

import json
from pathlib import Path

import pytest
from tiny import ROUTED, STATIC

from dqnet.errors import UserError
from dqnet.plan import Plan
from dqnet.search.trials import Trials

LAYERS = (*STATIC, *ROUTED)
SENSITIVITY = (
    "search=sensitivity", "quant=affine", "quant.widths=[2,4,8]", "loss.target_bits=4",
    "trainer.epochs=0",
)  # fmt: skip
GREEDY = "search=greedy", "quant=fixed_point", "quant.widths=[4,8]", "trainer.epochs=0"


def plan_of(made):
    return Plan.load(made.folder / "plan.json")


def found_by(made):
    return json.loads((made.folder / "search.json").read_text())


def test_a_search_leaves_a_plan_within_the_target_and_what_it_is_worth(run):
    made = run(*SENSITIVITY, "data.val_fraction=0.25")
    plan, summary = plan_of(made), made.summary
    assert [layer.name for layer in plan.layers if layer.role == "static"] == list(LAYERS)
    assert summary["target_bits"] == 4
    assert summary["costs"]["bit_flops"] <= summary["target_cost"]
    found = found_by(made)
    assert found["images"] == 60 and 0 <= found["top1"] <= 100
    assert found["seconds"] > 0 and len(found["state"]["sums"]) == len(LAYERS)
    assert "search sensitivity: " in made.text
    # What was measured is the network of the plan, as any run of it is.
    again = run("quant=affine", f"quant.plan={made.folder / 'plan.json'}", "trainer.epochs=0",
                "data.val_fraction=0.25")  # fmt: skip
    assert again.summary["loss"] == pytest.approx(summary["loss"], rel=1e-4)


def test_a_search_for_another_cost(run):
    made = run(*SENSITIVITY, "cost=size", "search.options.measure=kl")
    sizes = sum(own.weights * own.precisions[0].weight.bits / 8
                for own in plan_of(made).layers if own.precisions)  # fmt: skip
    assert made.summary["costs"]["size"] == sizes <= made.summary["target_cost"]


def test_greedy_chooses_weights_and_inputs_of_every_layer(run):
    made = run(*GREEDY, "search.options.accuracy=0.9")
    plan = plan_of(made)
    assert all(layer.role == "static" for layer in plan.layers) and len(plan.layers) == 8
    assert {own.bits for layer in plan.layers for own in (layer.precisions[0].weight,)} <= {4, 8}
    assert found_by(made)["search"] == "greedy"


def test_a_table_is_a_training_of_its_own(run):
    made = run("search=table", "quant.widths=[2,4]", "loss.target_bits=3", "search.epochs=2",
               "optim.controller_lr_scale=100")  # fmt: skip
    learned = json.loads((made.folder / "search/summary.json").read_text())
    assert learned["epochs"] == 2 and learned["distinct_routings"] == 1
    counts = {name: max(row, key=row.get) for name, row in learned["width_counts"].items()}
    plan = {layer.name: str(layer.precisions[0]) for layer in plan_of(made).layers[1:-1]}
    assert plan == counts


def test_what_is_found_is_trained_in_the_same_run(run):
    made = run(*SENSITIVITY, "trainer.epochs=2")
    assert made.summary["epochs"] == 2 and len(made.metrics) == 2
    assert {layer.role for layer in plan_of(made).layers} == {"full", "static"}


def test_a_run_goes_on_with_the_plan_that_was_found(run, monkeypatch):
    made = run(*SENSITIVITY, "trainer.epochs=1")
    (made.folder / "summary.json").unlink()
    monkeypatch.setattr("dqnet.training.train.searched_plan", None)
    again = run(*SENSITIVITY, "trainer.epochs=1", folder=made.folder)
    assert again.summary["bit_flops"] == made.summary["bit_flops"]


@pytest.mark.parametrize("kind", ["greedy", "sensitivity"])
def test_a_search_that_was_stopped_goes_on(run, monkeypatch, tmp_path, kind):
    settings = GREEDY if kind == "greedy" else (*SENSITIVITY, "data.val_fraction=0.5")
    whole = run(*settings)
    calls, logits = 0, Trials.logits

    def counted(trials, chosen):
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt
        return logits(trials, chosen)

    monkeypatch.setattr(Trials, "logits", counted)
    stop = None
    run(*settings)
    needed, calls, stop = calls, 0, calls * 2 // 3
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(*settings, folder=folder)
    assert not (folder / "summary.json").exists()
    calls, stop = 0, None
    again = run(*settings, folder=folder)
    assert calls < needed and plan_of(again) == plan_of(whole)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("data.val_fraction=0",), "a search chooses by held-out images: set data.val_fraction"),
        (("quant=none",), "a search chooses widths, and quant=none has none"),
        (
            ("loss.target_bits=9",),
            r"target_bits=9 cannot be .* from 2\.000 to 8\.000 bits",
        ),
        (("search.name=greed",), "unknown search 'greed'; did you mean 'greedy'"),
        (("search.options.measure=trace",), "unknown measure 'trace'"),
        (("quant.widths=[4]", "loss.target_bits=null"), "this one has no layer with several"),
        (("search.images=0",), r"search\.images 0 must be at least 1"),
    ],
)
def test_a_search_that_cannot_be_is_refused(run, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        run(*SENSITIVITY, *settings, folder=tmp_path / "run")


def test_greedy_keeps_to_no_cost(run):
    with pytest.raises(UserError, match="search 'greedy' keeps to no cost: leave target_bits out"):
        run(*GREEDY, "loss.target_bits=5")


def test_the_command_draws_the_bits_of_every_layer(command):
    small = ["data.size=8", "trainer.device=cpu", "search.images=20", "quant.widths=[2,8]"]
    result = command("train.py", "hydra.run.dir=run", *SENSITIVITY, *small)
    assert (result.status, result.err) == (0, [])
    for name in ("plan.json", "search.json", "summary.json", "bits.png", "bits.pdf"):
        assert Path("run", name).stat().st_size > 0
