"""Jobs through submitit: on a Slurm cluster as one array, or as processes of this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hydra.core.singleton import Singleton
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher
from omegaconf import OmegaConf

POLL_SECONDS = 0.5


def launch(
    launcher: BaseSubmititLauncher, jobs: Sequence[Sequence[str]]
) -> Iterator[tuple[int, str | None]]:
    """See :func:`hydra_plugins.dqnet_sweeps._launch.launch`.

    The launcher's own ``launch`` submits likewise, and raises at the first job that has no result.
    """
    # Slow to import, and this file is imported at each start.
    import submitit
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
