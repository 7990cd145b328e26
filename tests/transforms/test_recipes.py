"""Recipes with transforms: they train on the digits, and their sweeps compare like with like."""

from dataclasses import replace

import pytest

from hydra_plugins.dqnet_sweeps._resumable import ResumableSweeper


@pytest.mark.parametrize("kind", ["ghost", "palquant"])
def test_on_digits(run, measure, kind):
    made = run(
        f"experiment=cifar10_jpeg_{kind}", "data=digits", "data.size=8", "data.batch_size=60"
    )
    assert made.summary["top1"] == measure(made.folder)["top1"]
    (transform,) = made.checkpoint()["config"]["model"]["transforms"]
    assert transform["name"] == {"ghost": "ghost", "palquant": "parallel_groups"}[kind]


@pytest.mark.parametrize(("sweep", "count"), [("ghost_cifar10", 4), ("palquant_cifar10", 5)])
def test_runs_of_a_sweep_differ_in_networks_and_widths_only(command, monkeypatch, sweep, count):
    found = []
    monkeypatch.setattr(ResumableSweeper, "run", lambda self, jobs: found.extend(jobs) or [])
    assert command("train.py", "-m", f"sweep={sweep}", "data.root=x").status == 0
    configs = [job.config for job in found]
    networks = [(c.model.name, str(c.model.transforms), *c.quant.widths) for c in configs]
    assert len(set(networks)) == len(networks) == count
    for config in configs:
        config.model = replace(config.model, name="", transforms=[])
        config.quant = replace(config.quant, widths=[])
    assert all(config == configs[0] for config in configs)
