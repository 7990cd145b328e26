"""Launching jobs such that each ends on its own, whatever happens to the others.

Hydra's launchers return when all jobs have, or raise as soon as a process dies, and then the rest
is lost to the sweep. Here they are asked for one job at a time, or replaced where that would
serialise them. Every function yields, as each job ends, its index and, if its process died, what is
known of that. What is slow to import is imported late: Hydra reads this file at each start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.singleton import Singleton
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf

from dqnet.sweep.resources import Resources, machine, share

if TYPE_CHECKING:
    from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher

Jobs = Sequence[Sequence[str]]
Endings = Iterator[tuple[int, str | None]]
POLL_SECONDS = 0.5


def launch(launcher: Launcher, jobs: Jobs) -> Endings:
    """Runs jobs, given by their overrides."""
    # Not earlier: Hydra imports plugins a second time, and an instance is of the later class.
    from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher

    if not jobs:
        return iter(())
    if isinstance(launcher, JoblibLauncher):
        return _joblib(launcher, jobs)
    if isinstance(launcher, BaseSubmititLauncher):
        return _submitit(launcher, jobs)
    return _in_turn(launcher, jobs)


def _in_turn(launcher: Launcher, jobs: Jobs) -> Endings:
    for index, overrides in enumerate(jobs):
        died = None
        try:
            launcher.launch([overrides], initial_job_idx=index)
        except Exception as error:
            died = f"{type(error).__name__}: {error}"
        yield index, died


def _joblib(launcher: JoblibLauncher, jobs: Jobs) -> Endings:
    """``n_jobs`` at a time on one machine, each in a process with its own cores and GPU.

    joblib's own pool is one for all jobs: when the system kills a worker that took too much memory,
    every other worker goes with it. Here each share of the machine has a pool of one.
    """
    from hydra_plugins.hydra_joblib_launcher._core import execute_job
    from joblib.externals.loky.process_executor import ProcessPoolExecutor

    logs = Path(launcher.config.hydra.sweep.dir).absolute() / ".joblib"
    shares = share(launcher.joblib["n_jobs"], len(jobs), *machine())
    pools: dict[int, ProcessPoolExecutor] = {}
    running: dict[Future, tuple[int, int]] = {}
    waiting = iter(enumerate(jobs))

    def fill(number: int) -> None:
        """Starts the next job on a share, if there is one."""
        for index, overrides in waiting:
            if number not in pools:
                pools[number] = ProcessPoolExecutor(
                    max_workers=1,
                    env=shares[number].environment,
                    initializer=Resources.enter,
                    initargs=(shares[number], logs / f"{number}.log"),
                )
            arguments = launcher.hydra_context, launcher.config, launcher.task_function
            state = Singleton.get_state()
            future = pools[number].submit(execute_job, index, overrides, *arguments, state)
            running[future] = index, number
            return

    try:
        for number in range(len(shares)):
            fill(number)
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                index, number = running.pop(future)
                error, died = future.exception(), None
                if error is not None:
                    died = f"{type(error).__name__}: {' '.join(str(error).split())}"
                    pools.pop(number).shutdown(kill_workers=True)
                yield index, died
                fill(number)
    finally:
        for pool in pools.values():
            pool.shutdown(kill_workers=True)


def _submitit(launcher: BaseSubmititLauncher, jobs: Jobs) -> Endings:
    """On a Slurm cluster as one array, or as processes of this machine.

    The launcher's own ``launch`` submits likewise, and raises at the first job that has no result.
    """
    import submitit
    from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
    from submitit.helpers import as_completed

    cluster, params = launcher._EXECUTOR, dict(launcher.params)
    own = {"folder": params.pop("submitit_folder")}
    if "max_num_timeout" in params:
        own[f"{cluster}_max_num_timeout"] = params.pop("max_num_timeout")
    executor = submitit.AutoExecutor(cluster=cluster, **own)
    common = set(OmegaConf.structured(BaseQueueConf))
    executor.update_parameters(
        **{name if name in common else f"{cluster}_{name}": value for name, value in params.items()}
    )
    state = Singleton.get_state()
    calls = [
        (list(overrides), "hydra.sweep.dir", index, str(index), state)
        for index, overrides in enumerate(jobs)
    ]
    submitted = executor.map_array(launcher, *zip(*calls, strict=True))
    indices = {job.job_id: index for index, job in enumerate(submitted)}
    for job in as_completed(submitted, poll_frequency=POLL_SECONDS):
        died = None
        try:
            job.results()
        except Exception:  # submitit quotes the whole log in it
            died = f"its process ended without a result, see {job.paths.stderr}"
        yield indices[job.job_id], died
