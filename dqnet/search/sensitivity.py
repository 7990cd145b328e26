"""How much each layer suffers alone, and the best plan if these losses add up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dqnet.errors import UserError, unknown_name
from dqnet.search.base import Problem, check_count, search
from dqnet.search.measures import by_gradient, by_hessian, by_step, by_trials
from dqnet.search.optimum import cheapest_loss
from dqnet.search.trials import Operations

MEASURES = ("loss", "kl", "hessian", "gradient", "lsq_step")


@search("sensitivity")
@dataclass(frozen=True)
class Sensitivity:
    """Measures every layer at every precision with the others in full precision, then optimises.

    Attributes:
        measure: ``loss``: the difference of the cross-entropy; ``kl``: the divergence from the
            network in full precision; ``hessian``: the squared error times the mean trace of the
            Hessian; ``gradient``: times squared gradients; ``lsq_step``: LSQ's steps.
            :mod:`dqnet.search.measures` has their sources.
        samples: random vectors for each batch and tensor, of ``hessian``.
        alpha: how much weights count beside inputs, of ``lsq_step``.
        seed: of the random vectors.
    """

    meets_target: ClassVar[bool] = True
    reads_images: ClassVar[bool] = True
    chooses_apart: ClassVar[bool] = False

    measure: str = "loss"
    samples: int = 1
    alpha: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise unknown_name("measure", self.measure, MEASURES)
        check_count(self, "samples")

    def __call__(self, problem: Problem) -> list[int]:
        losses = self.losses(problem)
        if not losses.isfinite().all():
            raise UserError("a layer's loss is not finite: do the weights fit the data?")
        return cheapest_loss(losses, problem.prices, problem.to_spend)

    def losses(self, problem: Problem) -> Tensor:
        """What each layer alone adds to the loss of an image: float64 ``[L, K]``.

        It goes on where the journal says that it was.
        """
        if self.measure == "lsq_step":
            return by_step(problem, self.alpha)
        state = problem.journal.read()
        sums = torch.zeros_like(problem.prices)
        if state:
            sums += torch.tensor(state["sums"], dtype=torch.float64)
        done, batches = state.get("batches", 0), problem.batches
        operations = Operations(problem.model, batches[0][0][:2])
        with problem.journal.progress("sensitivity", len(batches), done) as advance:
            for i, batch in enumerate(batches[done:], done + 1):
                if self.measure == "hessian":
                    noise = torch.Generator().manual_seed(self.seed + i)
                    sums += by_hessian(problem, batch, self.samples, noise)
                elif self.measure == "gradient":
                    sums += by_gradient(problem, batch)
                else:
                    sums += by_trials(problem, operations, batch, self.measure)
                problem.journal.write({"batches": i, "sums": sums.tolist()})
                advance()
        return sums / sum(len(labels) for _, labels in batches)
