"""The best fixed routing of a trained dynamic network: what its controller has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from dqnet.search.base import Problem
from dqnet.search.optimum import cheapest_loss
from dqnet.search.trials import Operations, Trials

#: of the largest gain of one layer: what each changed layer has to bring. Gains add up only as far
#: as layers do not depend on each other, so that fewer changes at a time may be better.
CAUTION = (0.0, 0.125, 0.25, 0.5)


def best_fixed(problem: Problem, starts: Sequence[Sequence[int]], rounds: int = 4) -> list[int]:
    """One width for every layer, the same for all images: the least loss within the target.

    From the best of ``starts`` on each round measures the loss with one layer at another width and
    the others as they are, and takes the exact optimum of the sum of these differences. It ends
    where that is no better, which need not be the best of all K to the power of L.

    Args:
        problem: the network, held-out images and the target.
        starts: routings to begin with, L indices among the K each; those above the target are left
            out.
        rounds: at most.

    Returns:
        L indices among the K.

    Raises:
        UserError: if nothing costs as little as the target.
    """
    trials = Trials(Operations(problem.model, problem.batches[0][0][:2]), problem.batches)
    losses: dict[tuple[int, ...], float] = {}

    def loss(chosen: Sequence[int]) -> float:
        key = tuple(chosen)
        if key not in losses:
            losses[key] = F.cross_entropy(trials.logits(key), trials.labels).item()
        return losses[key]

    def cheapest(by: torch.Tensor) -> list[int]:
        return cheapest_loss(by, problem.prices, problem.to_spend)

    affordable = [own for own in starts if problem.price(own) <= problem.to_spend * (1 + 1e-9)]
    best = list(min(affordable or [cheapest(torch.zeros_like(problem.prices))], key=loss))
    layers = len(problem.candidates)
    with problem.journal.progress("best fixed routing", rounds * layers) as advance:
        for _ in range(rounds):
            changes = torch.zeros_like(problem.prices)
            for layer, own in enumerate(problem.candidates):
                trials.keep(best, layer)
                for k in own:
                    changes[layer, k] = loss([*best[:layer], k, *best[layer + 1 :]]) - loss(best)
                advance()
            changed = torch.ones_like(changes).scatter_(1, torch.tensor(best)[:, None], 0)
            hurdles = [-changes.min() * caution for caution in CAUTION]
            found = min((cheapest(changes + hurdle * changed) for hurdle in hurdles), key=loss)
            if loss(found) >= loss(best):
                break
            best = found
    return best
