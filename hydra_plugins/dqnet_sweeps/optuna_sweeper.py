"""A search by Optuna that goes on where it was.

The hydra-optuna-sweeper package needs an Optuna of 2022, which fails on today's SQLAlchemy, and
starts a search anew each time.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import OmegaConf

from dqnet.config import TrainConfig
from dqnet.errors import UserError, unknown_name
from dqnet.runtime.files import read_json
from dqnet.runtime.lock import held
from dqnet.sweep.outcome import Outcome, outcome
from dqnet.training.checkpoint import check_same_run, config_of
from dqnet.training.metrics import PER_EPOCH
from hydra_plugins.dqnet_sweeps._resumable import Job, ResumableSweeper

if TYPE_CHECKING:  # slow to import, and Hydra imports this file at each start
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

DIRECTIONS = ("maximize", "minimize")
#: what a search may choose by, under the names of metrics.jsonl: held-out images, never the test's
METRICS = (*(f"val_{name}" for name in PER_EPOCH), "mean_width")


class OptunaSweeper(ResumableSweeper):
    """Searches settings for the best metrics on held-out images.

    Trials live in a database. One that is complete counts toward ``n_trials`` for good; one that
    was cut off goes on in its folder; one that failed is, in the next start, tried again. What is
    proposed follows from the seed and the trials before, so an interrupted search ends like one
    that was not (with ``n_jobs=1``).

    Args:
        params: setting → values to search, in Hydra's syntax.
        objectives: metric of metrics.jsonl → ``maximize`` or ``minimize``; none: ``val_top1`` up.
        bounds: metric of metrics.jsonl → what it may be at most.
        n_trials: complete trials wanted, over all starts.
        n_jobs: trials proposed and run at a time.
        sampler: makes an Optuna sampler. A seed of its own takes the place of ``seed``.
        seed: of the proposals.
        storage: URL of Optuna's database; ``None``: ``study.db`` in the sweep's folder.
    """

    def __init__(
        self,
        params: Mapping[str, str] | None,
        objectives: Mapping[str, str] | None,
        bounds: Mapping[str, float] | None,
        n_trials: int,
        n_jobs: int,
        sampler: Callable[..., BaseSampler],
        seed: int,
        storage: str | None,
    ) -> None:
        self.params, self.bounds = dict(params or {}), dict(bounds or {})
        self.objectives = dict(objectives or {"val_top1": "maximize"})
        self.n_trials, self.n_jobs = n_trials, n_jobs
        self.sampler, self.seed, self.storage = sampler, seed, storage
        for name, number in (("n_trials", n_trials), ("n_jobs", n_jobs)):
            if not isinstance(number, int) or number < 1:
                raise UserError(f"hydra.sweeper.{name} must be a number from 1, not {number}")
        for name, bound in self.bounds.items():
            if not isinstance(bound, int | float):
                raise UserError(f"hydra.sweeper.bounds: {name} needs a number, not {bound!r}")
        for direction in self.objectives.values():
            if direction not in DIRECTIONS:
                raise unknown_name("direction", str(direction), DIRECTIONS)
        for name in [*self.objectives, *self.bounds]:
            if name not in METRICS:
                raise unknown_name("metric", name, METRICS)

    def sweep(self, arguments: list[str]) -> None:
        """As Hydra calls it, with the command line's overrides."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        lines = [*(f"{name}={values}" for name, values in self.params.items()), *arguments]
        overrides = {o.get_key_element(): o for o in self.parse(lines)}
        self.space = {k: distribution(o) for k, o in overrides.items() if o.is_sweep_override()}
        self.fixed = [o.input_line for o in overrides.values() if not o.is_sweep_override()]
        if not self.space:
            raise UserError(
                "nothing to search: hydra.sweeper.params, or e.g. 'optim.lr=interval(0.01,0.1)'"
            )
        config = self.job(self.fixed, []).config
        if config.data.val_fraction == 0:
            raise UserError("a search chooses by held-out images: set data.val_fraction, e.g. 0.1")
        if config.trainer.epochs == 0:
            raise UserError("a search needs runs of at least one epoch: set trainer.epochs")
        # Another process would take this one's running trials for cut-off ones.
        with held(self.folder, wait=False):
            study = self._study(config)
            before = self._trials(study, "COMPLETE")
            # Those whose folders are gone have no row in the table.
            known = [outcome(self._job(trial.params).folder) for trial in before]
            known = [replace(o, state="complete before") for o in known if o.summary is not None]
            outcomes = self._search(study, self.n_trials - len(before))
            self._report(study)
            self.finish(known + outcomes)

    def _study(self, config: TrainConfig) -> Study:
        """The study in the database, made if need be; one with other settings is refused."""
        import optuna

        study = optuna.create_study(
            storage=self._storage(),
            study_name="dqnet",
            directions=list(self.objectives.values()),
            sampler=self._sampler(0),
            load_if_exists=True,
        )
        goal = {"objectives": self.objectives, "bounds": self.bounds}
        stored = study.user_attrs.get("settings")
        if stored is None:
            study.set_user_attr("settings", {"config": asdict(config), **goal})
            return study
        path = self.folder / "study.db"
        check_same_run(path, asdict(config_of(stored, path)), config)
        for key, value in goal.items():
            # The order of objectives counts: values in the database have no names.
            if list(stored[key].items()) != list(value.items()):
                raise self._refusal(f"with {key} {stored[key]}, not {value}")
        return study

    def _storage(self) -> BaseStorage | str:
        """Optuna's database; the folder may have any name, which a URL would give a meaning to."""
        import optuna

        if self.storage is not None:
            return self.storage
        connect = partial(sqlite3.connect, self.folder / "study.db", check_same_thread=False)
        return optuna.storages.RDBStorage("sqlite:///study.db", engine_kwargs={"creator": connect})

    def _refusal(self, what: str) -> UserError:
        advice = "choose another hydra.sweep.dir, or remove that folder"
        return UserError(f"{self.folder} holds a search {what}: {advice}")

    def _search(self, study: Study, count: int) -> list[Outcome]:
        """Runs ``count`` trials: cut-off ones, failed ones of earlier starts, then new ones."""
        import optuna

        if count > 0:
            self._take_up(study)
        outcomes = []
        while len(outcomes) < count:
            at_once = min(self.n_jobs, count - len(outcomes))
            cut_off = self._trials(study, "RUNNING")[:at_once]
            # A running trial can only be written to through its number in the database.
            trials = [optuna.trial.Trial(study, trial._trial_id) for trial in cut_off]
            while len(trials) < at_once:
                study.sampler = self._sampler(len(study.get_trials(deepcopy=False)))
                try:
                    trials.append(study.ask(self.space))
                except ValueError as error:  # choices, and a range's kind, are what they first were
                    raise self._refusal(f"of another space ({error})") from error
            results = self.run([self._job(trial.params) for trial in trials])
            pairs = zip(trials, results, strict=True)
            outcomes += [self._tell(study, trial, result) for trial, result in pairs]
        return outcomes

    def _take_up(self, study: Study) -> None:
        """Queues what failed; drops what was cut off while it was being proposed."""
        import optuna

        for trial in self._trials(study, "RUNNING"):
            if trial.params.keys() != self.space.keys():
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        retried = {trial.user_attrs.get("retry_of") for trial in study.trials}
        for trial in self._trials(study, "FAIL"):
            if trial.number not in retried and trial.params.keys() == self.space.keys():
                study.enqueue_trial(trial.params, user_attrs={"retry_of": trial.number})

    def _tell(self, study: Study, trial: Trial, result: Outcome) -> Outcome:
        """What became of a trial; a run without the metrics asked for has failed as a trial."""
        import optuna

        if result.summary is not None:
            try:
                metrics = best_metrics(result.folder, [*self.objectives, *self.bounds])
            except UserError as error:
                result = Outcome(result.folder, "failed", error=str(error))
        if result.summary is None:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return result
        for name, bound in self.bounds.items():
            trial.set_constraint(name, metrics[name] - bound)
        study.tell(trial, [metrics[name] for name in self.objectives])
        return result

    def _sampler(self, trials: int) -> BaseSampler:
        """A sampler for the proposal after so many trials, which no other start repeats."""
        own = getattr(self.sampler, "keywords", {}).get("seed")
        seed = np.random.SeedSequence((self.seed if own is None else own, trials)).generate_state(1)
        return self.sampler(seed=int(seed[0]))

    def _job(self, params: Mapping[str, Any]) -> Job:
        # To four digits: a value names a folder, and can be typed again.
        own = [
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in params.items()
        ]
        return self.job([*self.fixed, *own], own)

    def _report(self, study: Study) -> None:
        """Prints the best trials, and writes ``best.yaml``: folders and metrics."""
        best = [
            {
                "folder": str(self._job(trial.params).folder.relative_to(self.folder)),
                **dict(zip(self.objectives, trial.values, strict=True)),
            }
            for trial in study.best_trials
        ]
        OmegaConf.save(OmegaConf.create(best), self.folder / "best.yaml")
        if not best:
            self.console.print("no trial is complete and within the bounds")
        for row in best:
            metrics = ", ".join(f"{name} {row[name]:.6g}" for name in self.objectives)
            self.console.print(f"best: {metrics}: {row['folder']}", soft_wrap=True, markup=False)

    @staticmethod
    def _trials(study: Study, state: str) -> list[FrozenTrial]:
        import optuna

        return study.get_trials(states=(optuna.trial.TrialState[state],))


def distribution(override: Override) -> BaseDistribution:
    """What a sweep override asks for, as Optuna's distribution.

    ``interval(0.1, 1)`` is continuous, or integer if both ends are; ``tag(log, interval(...))``
    logarithmic; anything else is a choice between its values, which may be lists.
    """
    from optuna import distributions

    value = override.value()
    if isinstance(value, IntervalSweep):
        log = "log" in value.tags
        if isinstance(value.start, int) and isinstance(value.end, int):
            return distributions.IntDistribution(value.start, value.end, log=log)
        return distributions.FloatDistribution(float(value.start), float(value.end), log=log)
    return distributions.CategoricalDistribution(list(override.sweep_string_iterator()))


def best_metrics(folder: Path, names: list[str]) -> dict[str, float]:
    """Some of :data:`METRICS` of a complete run's best epoch; the run must have had one.

    Raises:
        UserError: if the run has no such metric, as a float network has no Bit-FLOPs.
    """
    best = read_json(folder / "summary.json")["best_epoch"]
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = next(m for m in map(json.loads, lines) if m["epoch"] == best)
    for name in names:
        if found[name] is None:
            raise UserError(f"a search by {name} needs quantized networks: {folder} has none")
    return {name: float(found[name]) for name in names}
