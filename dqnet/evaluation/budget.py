"""The budget knob: the price of Bit-FLOPs at which a trained network costs what it may.

In evaluation a layer runs at the arg-max of score − λ · relative cost (see
:func:`dqnet.costs.relative_costs`), the Lagrangian form of "the best scores for
this mean cost" (Everett 1963, https://doi.org/10.1287/opre.11.3.399). λ = 0 is the network as it
was trained.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dqnet.costs import bit_flops, relative_costs
from dqnet.costs.network import check_target
from dqnet.network import QuantizedModel


def spend(model: QuantizedModel, budget_lambda: float) -> None:
    """Makes a model choose at λ in evaluation, the price of the network's mean candidate.

    Above 0 it is cheaper than trained, below 0 more expensive.
    """
    model.prices = _prices(model, budget_lambda) if budget_lambda else None


def chosen_at(model: QuantizedModel, scores: Tensor, budget_lambda: float) -> Tensor:
    """Index of the width of each layer at λ: int64 ``[N, L]`` from scores ``[N, L, K]``."""
    return (scores.double() - _prices(model, budget_lambda).to(scores.device)).argmax(-1)


def _prices(model: QuantizedModel, budget_lambda: float) -> Tensor:
    """λ · relative cost: float64 ``[L, K]``, 0 where a layer lacks a candidate."""
    return budget_lambda * relative_costs(model).nan_to_num(posinf=0)


def cost_of(model: QuantizedModel, chosen: Tensor) -> Tensor:
    """Bit-FLOPs of each image: float64 ``[N]`` on the CPU, from ``chosen``, integers ``[N, L]``."""
    return bit_flops(model, F.one_hot(chosen.long(), len(model.precisions))).cpu()


class Calibration:
    """λ and mean cost of some images, from their scores alone.

    The controller runs before every routed layer, so no routing changes the scores: one pass over
    the images answers for every λ.

    Args:
        model: a dynamic network.
        scores: ``[N, L, K]``, the controller's for the images to calibrate on.
    """

    def __init__(self, model: QuantizedModel, scores: Tensor) -> None:
        self.model = model
        self.scores = scores
        self._lambdas = self._candidates()

    def bit_flops(self, budget_lambda: float) -> float:
        """The mean cost at λ; it never rises with λ."""
        return cost_of(self.model, chosen_at(self.model, self.scores, budget_lambda)).mean().item()

    def lambda_for(self, budget: float) -> float:
        """The λ that spends most of ``budget`` Bit-FLOPs, and no more.

        The mean cost is a step function of λ. The step taken is the highest one that is not above
        the budget, and λ is in the middle of it, where rounding moves no image to another width. A
        budget below the cheapest routing gets the cheapest routing.
        """
        steps = range(len(self._lambdas))
        # Costs fall along the steps; bisection wants them to rise.
        step = bisect_left(steps, -budget, key=lambda i: -self.bit_flops(self._lambdas[i].item()))
        return self._lambdas[min(step, steps[-1])].item()

    def budgets(self, count: int) -> list[float]:
        """Bit-FLOPs, evenly from those of the cheapest routing to those of the most expensive."""
        cheapest, costliest = (self.bit_flops(self._lambdas[i].item()) for i in (-1, 0))
        return torch.linspace(cheapest, costliest, count, dtype=torch.float64).tolist()

    def spend(self, bits: float) -> dict[str, Any]:
        """Makes the model spend a budget on the mean image.

        Args:
            bits: the budget, as the width of the static network that costs as much.

        Returns:
            What ``eval.json`` says of it.

        Raises:
            UserError: if no routing costs that much or that little.
        """
        budget = check_target(self.model, bits, "budget")
        budget_lambda = self.lambda_for(budget)
        spend(self.model, budget_lambda)
        return {
            "budget": bits,
            "budget_bit_flops": budget,
            "budget_lambda": budget_lambda,
            "budget_calibration": {
                "images": len(self.scores),
                "bit_flops": self.bit_flops(budget_lambda),
            },
        }

    def _candidates(self) -> Tensor:
        """One λ inside every step, ascending; the outermost are well beyond the last change.

        Between two widths a layer of an image changes its mind where their priced scores are equal:
        at (score difference) / (relative cost difference). Where both cost the same, or the layer
        lacks one, no price makes it change. Images with other scores are at the extremes too.
        """
        first, second = torch.combinations(torch.arange(len(self.model.precisions))).unbind(1)
        gains = self.scores[..., second].double() - self.scores[..., first]
        relative = relative_costs(self.model).to(self.scores.device)
        prices = relative[:, second] - relative[:, first]
        different = prices.isfinite() & (prices != 0)
        if not different.any():
            return torch.zeros(1, dtype=torch.float64)
        changes = (gains / prices)[:, different].unique()
        margin = 2 * (changes[-1:] - changes[:1]).clamp_min(1.0)
        edges = torch.cat([changes[:1] - margin, changes, changes[-1:] + margin])
        return ((edges[1:] + edges[:-1]) / 2).cpu()
