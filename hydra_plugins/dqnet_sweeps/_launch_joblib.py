"""Jobs beside each other on one machine, each in a process with its own cores and GPU.

joblib's own pool is one for all jobs: when the system kills a worker that took too much memory,
every other worker goes with it. Here each share of the machine has a pool of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path

from hydra.core.singleton import Singleton
from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher

from dqnet.sweep.resources import Resources, machine, share


def launch(
    launcher: JoblibLauncher, jobs: Sequence[Sequence[str]]
) -> Iterator[tuple[int, str | None]]:
    """See :func:`hydra_plugins.dqnet_sweeps._launch.launch`; ``n_jobs`` at a time."""
    # Slow to import, and this file is imported at each start.
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
            future = pools[number].submit(
                execute_job, index, overrides, *arguments, Singleton.get_state()
            )
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
