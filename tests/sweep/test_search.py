"""Searches: by held-out images, within bounds, and going on where they were."""

import json

import optuna
import pytest
from omegaconf import OmegaConf
from optuna.trial import TrialState
from processes import epochs, metrics, times

SPACE = ["hydra/sweeper=optuna", "data.val_fraction=0.5", "optim.lr=tag(log,interval(0.01,0.1))"]


@pytest.fixture
def search(tiny):
    """The arguments of a search in ``search/``."""
    return ["-m", *tiny, *SPACE, "hydra.sweep.dir=search"]


def study(folder):
    return optuna.load_study(study_name="dqnet", storage=f"sqlite:///{folder}/study.db")


def test_a_killed_search_ends_like_one_that_was_not(start, command, search, tmp_path):
    search = [*search, "trainer.epochs=5", "hydra.sweeper.n_trials=4"]
    folder = tmp_path / "search"
    first = start(*search)
    first.wait_for(lambda: sum(len(metrics(run)) > 1 for run in folder.glob("optim*")) == 3)
    first.kill()
    (cut,) = (t for t in study(folder).trials if t.state.name == "RUNNING")
    runs = sorted(folder.glob("optim*"))
    complete = [run for run in runs if (run / "summary.json").exists()]
    assert len(runs) == 3
    assert len(complete) == 2
    before = [times(run) for run in complete]

    assert command("train.py", *search).status == 0
    assert [times(run) for run in complete] == before
    trials = study(folder).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 4
    assert trials[2].params == cut.params
    assert all(epochs(run) == list(range(5)) for run in folder.glob("optim*"))

    undisturbed = [*search, "hydra.sweep.dir=undisturbed"]
    assert command("train.py", *undisturbed).status == 0
    others = study(tmp_path / "undisturbed").trials
    assert [(t.params, t.values) for t in others] == [(t.params, t.values) for t in trials]

    # Complete trials count; a larger total adds to them.
    more = command("train.py", *search, "hydra.sweeper.n_trials=5")
    assert more.status == 0
    assert more.out.count("│ complete before") == 4
    trials = study(folder).trials
    assert len(trials) == len({trial.params["optim.lr"] for trial in trials}) == 5


def test_what_is_maximised_is_the_best_epoch_on_held_out_images(command, search, tmp_path):
    two = [*search, "trainer.epochs=3", "hydra.sweeper.n_trials=2", "quant.widths=[2,3]"]
    two.append("hydra.sweeper.objectives={val_top1:maximize,val_bit_flops:minimize}")
    assert command("train.py", *two).status == 0
    for trial in study(tmp_path / "search").trials:
        (run,) = (tmp_path / "search").glob(f"optim.lr={trial.params['optim.lr']:.4g}")
        best = json.loads((run / "summary.json").read_text())["best_epoch"]
        line = json.loads(metrics(run)[best])
        assert trial.values == [line["val_top1"], line["val_bit_flops"]]
    assert {d.name for d in study(tmp_path / "search").directions} == {"MAXIMIZE", "MINIMIZE"}


def test_the_best_trial_is_within_the_bounds(command, tiny, tmp_path):
    search = ["-m", *tiny, "hydra/sweeper=optuna", "data.val_fraction=0.5", "quant.widths=[2],[3]"]
    search += ["hydra.sweep.dir=search", "hydra.sweeper.n_trials=4", "hydra.sweeper.seed=1"]
    search += ["hydra.sweeper.objectives={val_bit_flops:maximize}"]
    result = command("train.py", *search, "hydra.sweeper.bounds={val_bit_flops:2e7}")
    assert result.status == 0
    costs = {trial.value for trial in study(tmp_path / "search").trials}
    assert min(costs) < 2e7 < max(costs)
    best = OmegaConf.load(tmp_path / "search/best.yaml")
    assert {row.val_bit_flops for row in best} == {min(costs)}


def test_failed_trials_do_not_end_a_search_and_are_tried_again(command, search, tmp_path):
    search = [*search, "optim.lr=choice(-1,0.1)", "hydra.sweeper.n_trials=3"]
    result = command("train.py", *search)
    states = [trial.state.name for trial in study(tmp_path / "search").trials]
    assert len(states) == 3
    assert set(states) == {"COMPLETE", "FAIL"}
    assert result.status == 1
    assert "failed: optim.lr=-1: optim.lr -1.0 must be above 0" in result.out

    failed = states.count("FAIL")
    assert command("train.py", *search).status == 1
    trials = study(tmp_path / "search").trials
    assert len(trials) == 3 + failed
    assert {trial.params["optim.lr"] for trial in trials[3:]} == {"-1"}
    assert [trial.user_attrs["retry_of"] for trial in trials[3:]] == [
        i for i, state in enumerate(states) if state == "FAIL"
    ]


@pytest.mark.parametrize(
    "arguments, part",
    [
        ("data.val_fraction=0", "set data.val_fraction"),
        ("trainer.epochs=0", "at least one epoch"),
        ("hydra.sweeper.objectives={val_top2:maximize}", "unknown metric 'val_top2'"),
        ("hydra.sweeper.objectives={val_top1:up}", "unknown direction 'up'"),
        ("optim.lr=0.1", "nothing to search"),
        ("hydra.sweeper.n_jobs=-1", "n_jobs must be a number from 1, not -1"),
        ("hydra.sweeper.n_trials=0", "n_trials must be a number from 1, not 0"),
        ("hydra.sweeper.bounds={val_top1:cheap}", "val_top1 needs a number, not 'cheap'"),
    ],
)
def test_mistake_is_one_line(command, search, tmp_path, arguments, part):
    result = command("train.py", *search, arguments)
    assert result.status == 1
    assert part in result.err[-1]
    assert not (tmp_path / "search").exists()


def test_other_settings_are_refused(command, search, tmp_path):
    search = [*search, "hydra.sweeper.n_trials=1"]
    assert command("train.py", *search).status == 0
    result = command("train.py", *search, "optim.momentum=0.5")
    assert "optim.momentum=0.9, not 0.5" in result.err[-1]
    result = command("train.py", *search, "hydra.sweeper.bounds={val_bit_flops:1}")
    assert "holds a search with bounds {}" in result.err[-1]
    result = command("train.py", *search, "hydra.sweeper.n_trials=2", "optim.lr=choice(0.1,0.2)")
    assert "holds a search of another space" in result.err[-1]
    assert len(study(tmp_path / "search").get_trials(states=[TrialState.COMPLETE])) == 1


def test_objectives_in_another_order_are_others(command, search, tmp_path):
    one = [*search, "hydra.sweeper.n_trials=1"]
    goal = "hydra.sweeper.objectives={val_top1:maximize,val_bit_flops:minimize}"
    assert command("train.py", *one, goal).status == 0
    other = "hydra.sweeper.objectives={val_bit_flops:minimize,val_top1:maximize}"
    result = command("train.py", *one, other)
    assert result.status == 1
    assert "holds a search with objectives" in result.err[-1]


def test_a_run_without_the_figures_fails_as_a_trial_and_the_search_goes_on(command, tiny, tmp_path):
    search = ["-m", *tiny, "hydra/sweeper=optuna", "data.val_fraction=0.5", "quant=none,dorefa"]
    search += ["hydra.sweep.dir=search", "hydra.sweeper.n_trials=4", "hydra.sweeper.seed=1"]
    search += ["hydra.sweeper.objectives={val_bit_flops:minimize}"]
    result = command("train.py", *search)
    assert result.status == 1
    assert "needs quantized networks" in result.out
    trials = study(tmp_path / "search").trials
    states = {trial.params["quant"]: trial.state.name for trial in trials}
    assert states == {"none": "FAIL", "dorefa": "COMPLETE"}
    assert len(trials) == 4


def test_a_seed_of_the_samplers_own_gives_other_proposals_each_time(command, search, tmp_path):
    search = [*search, "+hydra.sweeper.sampler.seed=1", "hydra.sweeper.n_trials=2"]
    search.append("hydra.sweep.subdir=lr${optim.lr}")
    assert command("train.py", *search).status == 0
    trials = study(tmp_path / "search").trials
    assert len({trial.params["optim.lr"] for trial in trials}) == 2
    best = OmegaConf.load(tmp_path / "search/best.yaml")
    assert all((tmp_path / "search" / row.folder / "summary.json").exists() for row in best)


@pytest.mark.parametrize("name", ["search_digits", "search_digits_front"])
def test_ready_searches_run(command, tiny, tmp_path, name):
    few = "trainer.epochs=1", "hydra.sweeper.n_trials=1", "data.val_fraction=0.5"
    small = [s for s in tiny if not s.startswith(("quant", "trainer.epochs"))]
    assert command("train.py", f"sweep={name}", *small, *few).status == 0
    assert (tmp_path / f"runs/{name}/study.db").exists()
