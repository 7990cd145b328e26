"""Several runs at a time: on this machine by joblib and submitit, and what Slurm would get."""

import os
import signal
import time

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins
from processes import ROOT, epochs, metrics

from dqnet.sweep.resources import machine, share


@pytest.mark.slow  # half a minute of starting processes
def test_killed_worker_does_not_lose_the_others(start, command, tiny, tmp_path):
    sweep = "-m", *tiny, "trainer.epochs=20", "seed=0,1,2", "hydra.sweep.subdir=${seed}"
    parallel = start(*sweep, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    zero, one, two = (tmp_path / "runs" / name for name in "012")
    parallel.wait_for(lambda: len(metrics(zero)) > 1)
    workers = parallel.workers()
    own = [os.sched_getaffinity(worker) for worker in workers.values()]
    assert len(own) == 2
    assert set.union(*own) == os.sched_getaffinity(0)
    if len(os.sched_getaffinity(0)) > 1:
        assert own[0].isdisjoint(own[1])
    os.kill(workers[1], signal.SIGKILL)  # as the system does when memory is short
    status, output = parallel.end()
    assert status == 1
    assert "failed: 0: TerminatedWorkerError" in output
    assert epochs(one) == epochs(two) == list(range(20))
    assert len(epochs(zero)) < 20

    assert command("train.py", *sweep).status == 0
    assert epochs(zero) == list(range(20))


def test_submitit_runs_each_job_in_a_process_of_its_own(command, tiny, tmp_path):
    sweep = "-m", *tiny, "optim.lr=-1,0.1", "hydra.sweep.subdir=${optim.lr}"
    result = command("train.py", *sweep, "hydra/launcher=submitit_local")
    assert result.status == 1
    assert "failed: -1: optim.lr -1.0 must be above 0" in result.out
    assert epochs(tmp_path / "runs/0.1") == [0]
    assert len(list(tmp_path.glob("runs/.submitit/*/*_result.pkl"))) == 2


@pytest.mark.parametrize("name", ["submitit_slurm", "slurm"])
def test_slurm_composes(name):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", [f"hydra/launcher={name}"], return_hydra_config=True)
    launcher = Plugins.instance()._instantiate(config.hydra.launcher)
    assert launcher._EXECUTOR == "slurm"


# Shares of a machine


def test_cores_are_split_and_gpus_go_round():
    shares = share(3, 9, cores=range(8), gpus=["4", "5"])
    assert [own.gpu for own in shares] == ["4", "5", "4"]
    assert sorted(core for own in shares for core in own.cores) == list(range(8))
    assert {len(own.cores) for own in shares} == {2, 3}


def test_resources_tell_libraries_what_they_may_use():
    (own,) = share(1, 1, cores=[2, 3], gpus=["7"])
    variables = {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "7"}
    assert own.environment == variables


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_on_its_resources_ends_with_the_one_that_started_it(tmp_path):
    (own,) = share(1, 1, machine()[0], [])
    log = tmp_path / "logs/0.log"
    reading, writing = os.pipe()
    if os.fork() == 0:
        if os.fork() == 0:
            own.enter(log)
            print("entered", flush=True)
            time.sleep(600)
        while not log.exists() or "entered" not in log.read_text():
            time.sleep(0.01)
        os._exit(0)
    os.close(writing)
    assert os.read(reading, 1) == b""  # nobody has the other end any more
    os.close(reading)


@pytest.mark.parametrize("cores, gpus, count", [(4, [], 4), (4, ["0", "1"], 2)])
def test_as_many_shares_as_gpus_or_else_cores(cores, gpus, count):
    assert len(share(-1, 9, range(cores), gpus)) == count


def test_a_share_without_a_job_takes_no_cores():
    shares = share(-1, 2, range(8), [])
    assert [len(own.cores) for own in shares] == [4, 4]


def test_more_runs_than_cores_share_them():
    assert [own.cores for own in share(3, 9, [5, 7], [])] == [(5,), (5,), (7,)]
