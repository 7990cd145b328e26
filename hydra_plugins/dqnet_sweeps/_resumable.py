"""What grids and searches share: jobs with lasting folders, of which only the missing are run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict
from rich.console import Console

from dqnet.cli import run_name, to_object
from dqnet.config import TrainConfig
from dqnet.errors import UserError
from dqnet.overrides import as_hydra_reads
from dqnet.processes import launched
from dqnet.sweep.failure import clear_failure
from dqnet.sweep.outcome import Outcome, earlier_outcome, outcome
from dqnet.sweep.table import print_outcome, print_outcomes
from hydra_plugins.dqnet_sweeps._launch import launch


@dataclass(frozen=True)
class Job:
    """One run of a sweep: what makes it, where it lives, what that composes to."""

    overrides: tuple[str, ...]
    folder: Path
    config: TrainConfig


class ResumableSweeper(Sweeper):
    """Runs jobs whose folders follow from their settings; a job's files are all that is trusted."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """As Hydra calls it."""
        if launched() > 1:
            raise UserError("a sweep starts its runs itself: start it with python, not torchrun")
        self.config = config
        self.hydra_context = hydra_context
        self.console = Console()
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    @property
    def folder(self) -> Path:
        """Where the jobs' folders are."""
        return Path(self.config.hydra.sweep.dir)

    def parse(self, overrides: Iterable[str]) -> list[Override]:
        """Settings as they are typed, on the command line or in a sweep's file."""
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        return parser.parse_overrides([as_hydra_reads(o) for o in overrides])

    def job(self, overrides: Iterable[str], distinguishing: Iterable[str]) -> Job:
        """Composes a job.

        Args:
            overrides: everything that makes it.
            distinguishing: those that tell it from its siblings: they name its folder.
        """
        overrides = list(overrides)
        given = self.config.hydra.overrides.hydra
        if not any(override.startswith("hydra.sweep.subdir=") for override in given):
            overrides.append(f"hydra.sweep.subdir='{run_name(distinguishing)}'")
        composed = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        folder = self.folder / composed.hydra.sweep.subdir
        with open_dict(composed):
            del composed["hydra"]
        return Job(tuple(overrides), folder, to_object(TrainConfig, composed))

    def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Runs what is missing; complete jobs are not even launched.

        Raises:
            UserError: before anything is run, if a folder holds a run with other settings: some
                runs would be of the old sweep, some of a new one.
        """
        outcomes = {job.folder: earlier_outcome(job.folder, job.config) for job in jobs}
        refused = [o for o in outcomes.values() if o is not None and o.state == "failed"]
        if refused:
            more = f" (and {len(refused) - 1} runs more)" if len(refused) > 1 else ""
            raise UserError(f"nothing is run: {refused[0].error}{more}")
        unsettled = {job.folder: job for job in jobs if outcomes[job.folder] is None}
        missing = list(unsettled.values())
        for job in missing:
            clear_failure(job.folder)
        endings = launch(self.launcher, [job.overrides for job in missing])
        for ended, (index, died) in enumerate(endings, 1):
            result = outcome(missing[index].folder, died)
            outcomes[result.folder] = result
            print_outcome(self.console, result, f"{ended}/{len(missing)} ")
        return [outcomes[job.folder] for job in jobs]

    def finish(self, outcomes: Sequence[Outcome]) -> None:
        """Prints the table.

        Raises:
            UserError: if a job failed, for the exit status.
        """
        print_outcomes(self.console, self.folder, outcomes)
        failed = sum(outcome.state == "failed" for outcome in outcomes)
        if failed:
            raise UserError(
                f"{failed} of {len(outcomes)} runs failed, for the reasons above (tracebacks: "
                "error.txt in their folders); the same command tries them again"
            )
