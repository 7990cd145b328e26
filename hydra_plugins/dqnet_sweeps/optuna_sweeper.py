"""A search by Optuna that goes on where it was.

The hydra-optuna-sweeper package needs an Optuna of 2022, which fails on today's SQLAlchemy, and
starts a search anew each time.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import OmegaConf

from dqnet.config import TrainConfig
from dqnet.errors import UserError, unknown_name
from dqnet.runtime.lock import held
from dqnet.sweep.metrics import METRICS, best_metrics
from dqnet.sweep.outcome import Outcome, outcome
from dqnet.training.checkpoint import check_same_run, config_of
from hydra_plugins.dqnet_sweeps._resumable import Job, ResumableSweeper

if TYPE_CHECKING:  # slow to import, and Hydra imports this file at each start
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

DIRECTIONS = ("maximize", "minimize")


class OptunaSweeper(ResumableSweeper):
    """Searches settings for the best metrics on held-out images.

    Trials live in a database. One that is complete counts toward ``n_trials`` for good; one that
    was cut off goes on in its folder; one that failed is, in the next start, tried again. What is
    proposed follows from the seed and the trials before, so an interrupted search ends like one
    that was not (with ``n_jobs=1``).

    Args:
        params: setting → values to search, in Hydra's syntax.
        objectives: figure of metrics.jsonl → ``maximize`` or ``minimize``; none: ``val_top1`` up.
        bounds: figure of metrics.jsonl → what it may be at most.
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
                raise unknown_name("figure", name, METRICS)

    def sweep(self, arguments: list[str]) -> None:
        """As Hydra calls it, with the command line's overrides."""
        import optuna

        from hydra_plugins.dqnet_sweeps._search_space import distribution

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
            known = [self._known(trial) for trial in before]
            outcomes = self._search(study, self.n_trials - len(before))
            self._report(study)
            self.finish([o for o in known if o is not None] + outcomes)

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
                raise UserError(
                    f"{self.folder} holds a search with {key} {stored[key]}, not {value}: "
                    "choose another hydra.sweep.dir, or remove that folder"
                )
        return study

    def _storage(self) -> BaseStorage | str:
        """Optuna's database; the folder may have any name, which a URL would give a meaning to."""
        import optuna

        if self.storage is not None:
            return self.storage
        connect = partial(sqlite3.connect, self.folder / "study.db", check_same_thread=False)
        return optuna.storages.RDBStorage("sqlite:///study.db", engine_kwargs={"creator": connect})

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
                trials.append(self._ask(study))
            results = self.run([self._job(trial.params) for trial in trials])
            pairs = zip(trials, results, strict=True)
            outcomes += [self._tell(study, trial, result) for trial, result in pairs]
        return outcomes

    def _ask(self, study: Study) -> Trial:
        try:
            return study.ask(self.space)
        except ValueError as error:  # choices, and the kind of a range, are what they first were
            raise UserError(
                f"{self.folder} holds a search of another space ({error}): "
                "choose another hydra.sweep.dir, or remove that folder"
            ) from error

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
        own = self._overrides(params)
        return self.job([*self.fixed, *own], own)

    def _known(self, trial: FrozenTrial) -> Outcome | None:
        """The row of a trial that was complete before this start, if its folder is still there."""
        result = outcome(self._job(trial.params).folder)
        return None if result.summary is None else replace(result, state="complete before")

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
    def _overrides(params: Mapping[str, Any]) -> list[str]:
        from hydra_plugins.dqnet_sweeps._search_space import as_override

        return [as_override(name, value) for name, value in params.items()]

    @staticmethod
    def _trials(study: Study, state: str) -> list[FrozenTrial]:
        import optuna

        return study.get_trials(states=(optuna.trial.TrialState[state],))
