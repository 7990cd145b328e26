"""Grids: what they run, that they end, and that a second start repeats nothing."""

import fcntl
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
from processes import epochs, metrics, times

from dqnet.training import train as loop
from hydra_plugins.dqnet_sweeps._resumable import ResumableSweeper


@pytest.fixture
def planned(command, monkeypatch):
    """``planned(arguments...)``: the jobs of a sweep, which are not run."""

    def jobs(*arguments):
        found = []
        monkeypatch.setattr(ResumableSweeper, "run", lambda self, jobs: found.extend(jobs) or [])
        assert command("train.py", *arguments).status == 0
        return found

    return jobs


# What is run, and where


def test_static_and_dynamic_cells_differ_in_their_widths_only(planned):
    jobs = planned("-m", "sweep=static_vs_dynamic", "data.root=x", "trainer.epochs=6")
    static = [job.config for job in jobs if len(job.config.quant.widths) == 1]
    dynamic = [job.config for job in jobs if len(job.config.quant.widths) == 3]
    (cheaper,) = (config for config in dynamic if config.loss.target_bits not in (2, 3, 4))
    assert cheaper.loss.target_bits**2 == pytest.approx(0.8 * 2**2, rel=0.01)
    dynamic.remove(cheaper)
    cells = [(c.quant.quantizer, *c.quant.widths, c.seed) for c in static]
    assert sorted(cells) == [
        *(("dorefa", bits, seed) for bits, seed in [(2, 0), (3, 0), (3, 1), (3, 2), (4, 0)]),
        *(("lsq", bits, 0) for bits in (2, 3, 4)),
        ("pact", 3, 0),
    ]
    for config in dynamic:
        bits = config.quant.widths[1]
        assert config.quant.widths == [bits - 1, bits, bits + 1]
        assert config.loss.target_bits == bits
        config.quant = replace(config.quant, widths=[bits])
        config.loss = replace(config.loss, target_bits=None)
    assert len(dynamic) == len(static)
    assert all(config in static for config in dynamic)


def test_fixed_plans_are_trained_as_uniform_and_dynamic_networks_are(planned):
    configs = [job.config for job in planned("-m", "sweep=mixed_precision", "data.root=x")]
    cells = [(c.search.name, c.loss.target_bits, *c.quant.widths) for c in configs]
    uniform = [("none", None, bits) for bits in (2, 3, 4)]
    names = ("sensitivity", "table", "optuna", "none")
    chosen = [(own, bits, bits - 1, bits, bits + 1) for own in names for bits in (2, 3, 4)]
    assert Counter(cells) == Counter([*uniform, *chosen])
    trained = [(c.trainer, c.optim, c.data, c.quant.first_last, c.quant.quantizer) for c in configs]
    assert all(own == trained[0] for own in trained)


def test_controllers_read_at_three_places_or_on_their_own(planned):
    jobs = planned("-m", "sweep=controller", "data.root=x")
    places = [(j.config.quant.shared_until, j.config.quant.controller.kind) for j in jobs]
    shared = [(place, "shared") for place in ("act1", "layer1", "layer2")]
    assert places == [*shared, ("auto", "separate")]


def test_folders_are_named_by_what_the_sweep_varies(planned):
    jobs = planned("sweep=controller", "data.root=/some/where", "seed=0,1")
    assert {str(job.folder.parent) for job in jobs} == {"runs/controller"}
    names = [job.folder.name for job in jobs]
    assert len(set(names)) == 8
    assert names[0] == "experiment=cifar10_jpeg_dynamic,quant.shared_until=act1,seed=0"


def test_a_sweep_without_a_name_is_single_runs(planned):
    jobs = planned("-m", "quant=dorefa,lsq", "seed=1")
    names = [str(job.folder) for job in jobs]
    assert names == ["runs/quant=dorefa,seed=1", "runs/quant=lsq,seed=1"]


def test_the_command_line_takes_the_place_of_a_grids_own_values(planned):
    jobs = planned("sweep=digits", "quant=pact")
    assert {job.config.quant.quantizer for job in jobs} == {"pact"}
    assert [job.folder.name for job in jobs] == [
        "quant.widths=[3],quant=pact",
        "loss.target_bits=3,quant.widths=[2,3,4],quant=pact",
    ]


def test_intervals_are_for_searches(command):
    result = command("train.py", "-m", "optim.lr=interval(0.1,1)")
    assert result.status == 1
    assert "hydra/sweeper=optuna" in result.err[-1]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["seed=0,1", "hydra.sweep.subdir=one"], "several runs would be in runs/one"),
        (["sweep=digits,none"], "sweep=digits,none: one sweep at a time"),
        (['hydra.sweeper.grids=["model.name=O\'Neill"]'], "No closing quotation"),
        (["seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=0"], "n_jobs=0: a number"),
        (["sweep=digits", "--cfg", "job"], "Only one of --run, --multirun, --cfg"),
    ],
)
def test_mistake_is_one_line_and_nothing_is_run(command, tiny, tmp_path, arguments, said):
    result = command("train.py", "-m", *tiny, *arguments)
    assert result.status == 1
    assert said in result.err[-1]
    assert not list(tmp_path.glob("runs/*/*"))


@pytest.mark.parametrize("arguments", [("-m", "seed=0,1"), ("sweep=digits",)])
def test_a_sweep_is_not_for_torchrun(command, monkeypatch, tmp_path, arguments):
    monkeypatch.setattr("hydra_plugins.dqnet_sweeps._resumable.launched", lambda: 2)
    result = command("train.py", *arguments)
    assert result.status == 1
    assert result.err[-1].endswith("start it with python, not torchrun")
    assert not (tmp_path / "runs").exists()


def test_misspelt_settings_end_a_sweep_before_it_starts(command, tmp_path):
    result = command("train.py", "-m", "quant=dorefa,lsk")
    assert result.status == 1
    assert "unknown quant 'lsk'" in result.err[-1]
    assert not (tmp_path / "runs").exists()


# How it ends


def test_a_failed_run_does_not_lose_the_others(command, tiny, tmp_path):
    sweep = (
        "-m",
        *tiny,
        "optim.lr=-1,0.1",
        "hydra.sweep.dir=sweep",
        "hydra.sweep.subdir=lr${optim.lr}",
    )
    result = command("train.py", *sweep)
    assert result.status == 1
    assert result.err[-1].startswith("error: 1 of 2 runs failed")
    assert "failed: lr-1: optim.lr -1.0 must be above 0" in result.out
    assert (tmp_path / "sweep/lr0.1/summary.json").exists()
    assert (tmp_path / "sweep/lr-1/error.txt").read_text().startswith("optim.lr -1.0 must be")

    before = times(tmp_path / "sweep/lr0.1")
    again = command("train.py", *sweep)
    assert again.status == 1
    assert "complete before" in again.out
    assert times(tmp_path / "sweep/lr0.1") == before


def test_a_bug_keeps_its_traceback_until_the_run_is_repeated(command, tiny, tmp_path, monkeypatch):
    def broken(*args):
        raise RuntimeError("a bug\nof two lines")

    sweep = "-m", *tiny, "seed=0,1"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train", broken)
        result = command("train.py", *sweep)
    assert result.status == 1
    assert result.out.count("RuntimeError: a bug of two lines") == 4  # as it ends, and at the end
    errors = list(tmp_path.glob("runs/*/error.txt"))
    assert len(errors) == 2
    assert all("in broken" in path.read_text() for path in errors)

    result = command("train.py", *sweep)
    assert result.status == 0
    assert not list(tmp_path.glob("runs/*/error.txt"))


def test_a_folder_with_other_settings_is_refused_and_kept(command, tiny, tmp_path):
    sweep = "-m", *tiny, "seed=0", "hydra.sweep.subdir=run"
    assert command("train.py", *sweep).status == 0
    before = times(tmp_path / "runs/run")
    result = command("train.py", *sweep, "optim.lr=0.5")
    assert result.status == 1
    assert "nothing is run: runs/run holds a run with optim.lr=0.05, not 0.5" in result.err[-1]
    assert times(tmp_path / "runs/run") == before
    assert command("train.py", *sweep, "data.workers=1").status == 0  # a circumstance


def test_other_settings_are_refused_before_a_missing_run_takes_them(command, tiny, tmp_path):
    grid = "hydra.sweeper.grids=['seed={}']"
    assert command("train.py", "-m", *tiny, grid.format("0")).status == 0
    result = command("train.py", "-m", *tiny, grid.format("0,1"), "optim.lr=0.2")
    assert result.status == 1
    assert "seed=0 holds a run with optim.lr=0.05, not 0.2" in result.err[-1]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["seed=0"]


def test_a_complete_run_needs_no_checkpoints(command, tiny, tmp_path):
    sweep = "-m", *tiny, "seed=0", "hydra.sweep.subdir=run"
    assert command("train.py", *sweep).status == 0
    run = tmp_path / "runs/run"
    for name in ("last.pt", "best.pt"):
        (run / name).unlink()
    before = times(run)
    assert "complete before" in command("train.py", *sweep).out
    refused = command("train.py", *sweep, "optim.lr=-1")
    assert refused.status == 1
    assert "optim.lr=0.05, not -1.0" in refused.err[-1]
    assert times(run) == before


@pytest.mark.parametrize("record", ["", "a: [1"])
def test_a_damaged_record_is_written_again(command, tiny, tmp_path, record):
    sweep = "-m", *tiny, "seed=0", "hydra.sweep.subdir=run"
    assert command("train.py", *sweep).status == 0
    path = tmp_path / "runs/run/.hydra/config.yaml"
    content = path.read_text()
    path.write_text(record)
    assert command("train.py", *sweep).status == 0
    assert path.read_text() == content


def test_a_killed_sweep_continues_where_it_was(start, command, tiny, tmp_path):
    sweep = ["-m", *tiny, "trainer.epochs=15", "optim.lr=-1,0.1,0.2"]
    sweep.append("hydra.sweep.subdir=${optim.lr}")
    failed, done, cut = (tmp_path / "runs" / lr for lr in ("-1", "0.1", "0.2"))
    first = start(*sweep)
    first.wait_for(lambda: len(metrics(cut)) > 2)
    first.kill()
    written, before = metrics(cut), times(done)
    assert not (cut / "summary.json").exists()

    result = command("train.py", *sweep)
    assert result.status == 1
    assert times(done) == before
    assert epochs(cut) == list(range(15))
    # The last line may be newer than the checkpoint; each has the seconds its epoch took.
    assert metrics(cut)[: len(written) - 1] == written[:-1]
    assert (cut / "summary.json").exists()
    assert (failed / "error.txt").exists()
    assert [result.out.count(f"│ {s}") for s in ("failed", "complete before", "done")] == [1] * 3


def test_a_run_at_work_elsewhere_is_waited_for(command, tiny, tmp_path, monkeypatch):
    """As when a sweep was killed on the machine that started it, but not its jobs on a cluster."""
    (tmp_path / "runs/run").mkdir(parents=True)
    hold = "import fcntl, sys; f = open('runs/run/.lock', 'w'); fcntl.flock(f, fcntl.LOCK_EX)"
    hold += "; print(flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", hold], cwd=tmp_path, **pipes) as elsewhere:
        elsewhere.stdout.readline()
        flock = fcntl.flock

        def ends_when_waited_for(file, operation):
            if operation == fcntl.LOCK_EX:
                elsewhere.stdin.close()
            flock(file, operation)

        monkeypatch.setattr(fcntl, "flock", ends_when_waited_for)
        result = command("train.py", "-m", *tiny, "hydra.sweep.subdir=run")
        assert elsewhere.poll() == 0
    assert result.status == 0
    assert "another process is at work in" in result.out
    assert epochs(tmp_path / "runs/run") == [0]
