"""Launching jobs such that each ends on its own, whatever happens to the others.

Hydra's launchers return when all jobs have, or raise as soon as a process dies, and then the rest
is lost to the sweep. Here they are asked for one job at a time, or replaced where that would
serialise them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hydra.plugins.launcher import Launcher

from hydra_plugins.dqnet_sweeps import _launch_joblib, _launch_submitit


def launch(launcher: Launcher, jobs: Sequence[Sequence[str]]) -> Iterator[tuple[int, str | None]]:
    """Runs jobs, given by their overrides.

    Yields:
        As each ends, its index and, if its process died, what is known of that.
    """
    # Not earlier: Hydra imports plugins a second time, and an instance is of the later class.
    from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher

    if not jobs:
        return iter(())
    if isinstance(launcher, JoblibLauncher):
        return _launch_joblib.launch(launcher, jobs)
    if isinstance(launcher, BaseSubmititLauncher):
        return _launch_submitit.launch(launcher, jobs)
    return _in_turn(launcher, jobs)


def _in_turn(launcher: Launcher, jobs: Sequence[Sequence[str]]) -> Iterator[tuple[int, str | None]]:
    for index, overrides in enumerate(jobs):
        died = None
        try:
            launcher.launch([overrides], initial_job_idx=index)
        except Exception as error:
            died = f"{type(error).__name__}: {error}"
        yield index, died
