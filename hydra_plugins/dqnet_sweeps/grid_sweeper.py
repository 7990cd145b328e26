"""Every combination of some lists of values, or of several such lists."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra.core.override_parser.types import Override

from dqnet.errors import UserError
from hydra_plugins.dqnet_sweeps._resumable import Job, ResumableSweeper


class GridSweeper(ResumableSweeper):
    """Runs grids.

    Args:
        grids: each a line of overrides as typed in a shell, values separated by commas; the sweep
            is all of them, each with the command line's overrides added or put in their place. With
            none, the command line is the grid.
    """

    def __init__(self, grids: Sequence[str]) -> None:
        self.grids = list(grids)

    def sweep(self, arguments: list[str]) -> None:
        """As Hydra calls it, with the command line's overrides."""
        jobs: dict[Path, Job] = {}
        for job in self._jobs(arguments):
            if jobs.setdefault(job.folder, job).config != job.config:
                raise UserError(
                    f"several runs would be in {job.folder}: hydra.sweep.subdir must tell them "
                    "apart; without it every run has a folder of its own"
                )
        self.finish(self.run(list(jobs.values())))

    def _jobs(self, arguments: list[str]) -> Iterator[Job]:
        typed = {o.get_key_element(): o for o in self.parse(arguments)}
        if "sweep" in typed and typed["sweep"].is_sweep_override():
            raise UserError(f"{typed['sweep'].input_line}: one sweep at a time")
        for line in self.grids or [""]:
            grid = {o.get_key_element(): o for o in self.parse(_words(line))}
            # With no grid of its own, a sweep is several runs as they could be started one by one.
            names = grid.keys() | {k for k, o in typed.items() if o.is_sweep_override()}
            overrides = grid | typed
            for values in itertools.product(*map(_values, overrides.values())):
                named = [v for k, v in zip(overrides, values, strict=True) if k in names]
                yield self.job(values, named if self.grids else values)


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise UserError(f"hydra.sweeper.grids: {line!r} cannot be read: {error}") from error


def _values(override: Override) -> list[str]:
    """The overrides of single values that a list of values stands for."""
    if not override.is_sweep_override():
        return [override.input_line]
    if not override.is_discrete_sweep():
        raise UserError(
            f"{override.input_line}: a grid takes lists of values; "
            "intervals are for hydra/sweeper=optuna"
        )
    key = override.get_key_element()
    return [f"{key}={value}" for value in override.sweep_string_iterator()]
