"""A search that knows nothing of the network but what plans lose and cost.

It stands for reinforcement learning (HAQ, Wang et al. 2019, https://arxiv.org/abs/1811.08886),
which tries plans as well; the Tree-structured Parzen Estimator of Optuna is kept by others and
needs no training of its own. Both need hundreds of passes over the images and find no more than
good plans, where ``sensitivity`` needs L × K shorter ones and is exact if losses add up, and a
learned ``table`` needs a training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch.nn.functional as F

from dqnet.search.base import Problem, check_count, search
from dqnet.search.trials import Operations, Trials

if TYPE_CHECKING:  # slow to import
    from optuna.study import Study


@search("optuna")
@dataclass(frozen=True)
class BlackBox:
    """Proposes plans, and takes the one with the least loss that the target allows.

    A proposal that is too expensive is made cheaper as HAQ does it: layer after layer loses a
    precision until the target is met.

    Attributes:
        trials: plans to try.
        seed: of the proposals.
    """

    meets_target: ClassVar[bool] = True
    reads_images: ClassVar[bool] = True
    chooses_apart: ClassVar[bool] = False

    trials: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        check_count(self, "trials")

    def __call__(self, problem: Problem) -> list[int]:
        import optuna

        trials = Trials(Operations(problem.model, problem.batches[0][0][:2]), problem.batches)
        study = self._study(problem)
        names = [layer.name for layer in problem.model.routed_layers]
        done = len(study.get_trials(states=(optuna.trial.TrialState.COMPLETE,)))
        if not done:
            study.enqueue_trial(
                {n: len(own) - 1 for n, own in zip(names, problem.candidates, strict=True)}
            )
        with problem.journal.progress("plans", self.trials, done) as advance:
            for number in range(done, self.trials):
                # Of the number, so that a search that goes on proposes what it would have.
                seed = self.seed + number
                study.sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True)
                trial = study.ask()
                proposed = [
                    trial.suggest_int(name, 0, len(own) - 1)
                    for name, own in zip(names, problem.candidates, strict=True)
                ]
                chosen = affordable(problem, proposed)
                trial.set_user_attr("chosen", chosen)
                loss = F.cross_entropy(trials.logits(chosen), trials.labels).item()
                study.tell(trial, loss)
                advance()
        return study.best_trial.user_attrs["chosen"]

    def _study(self, problem: Problem) -> Study:
        """In the journal's folder, if there is one."""
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage: Any = None
        if problem.journal.folder is not None:
            storage = JournalStorage(JournalFileBackend(str(problem.journal.folder / "study.log")))
        return optuna.create_study(study_name="plans", storage=storage, load_if_exists=True)


def affordable(problem: Problem, proposed: list[int]) -> list[int]:
    """The precisions that are proposed, by their places among each layer's own, or cheaper ones.

    Returns:
        Their indices among the network's K.
    """
    places, candidates = list(proposed), problem.candidates
    layer = 0

    def chosen() -> list[int]:
        return [own[place] for own, place in zip(candidates, places, strict=True)]

    while problem.price(chosen()) > problem.to_spend * (1 + 1e-9) and any(places):
        places[layer] = max(places[layer] - 1, 0)
        layer = (layer + 1) % len(places)
    return chosen()
