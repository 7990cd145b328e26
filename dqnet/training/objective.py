"""The training loss: the task, the price of bits, what keeps routing apart, and a teacher."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from dqnet.config import LossConfig
from dqnet.costs import CostModel, cost, find_cost, static_bit_flops
from dqnet.costs.base import read_options
from dqnet.costs.network import check_target, default_target_bits
from dqnet.costs.static import StaticCosts
from dqnet.costs.width import mean_width
from dqnet.errors import unknown_name
from dqnet.losses import cost_penalty, distillation, mean_width_penalty, mutual_information
from dqnet.network import QuantizedModel, ScoredOutput
from dqnet.ranges import check_ranges

PENALTIES = ("bit_flops", "mean_width")


class Objective:
    """loss = cross-entropy + α · penalty − β · I(image; choice) + γ · KL(teacher ‖ student).

    The third term, past the paper, keeps the routing from collapsing into one for all images while
    widths are hardly told apart. It also asks for different widths where they do not help, so it
    may end early: β is 0 after ``mutual_information_until`` of the training. The teacher is the
    full-precision network that training starts from; γ is ``distillation``.

    Args:
        model: what is trained.
        config: its settings.
        cost_options: the fields of the cost model, with nothing left to be read from a file;
            ``None``: as ``config`` says.
        searched: whether a search has spent the target, of which it may have left something.

    Attributes:
        cost: the model that the penalty and the target are in.
        cost_options: its fields that are not the default, files having been read.
        target_bits: the target as a width; ``None`` for a float model.
        target: what the static network of that width costs, by ``cost``.
        target_bit_flops: the same in Bit-FLOPs.
    """

    def __init__(
        self,
        model: nn.Module,
        config: LossConfig,
        cost_options: dict[str, Any] | None = None,
        searched: bool = False,
    ) -> None:
        if config.penalty not in PENALTIES:
            raise unknown_name("loss.penalty", config.penalty, PENALTIES)
        check_ranges(config, "loss")
        self.config = config
        self.model = model if isinstance(model, QuantizedModel) else None
        if cost_options is None:
            cost_options = read_options(config.cost, config.cost_options)
        self.cost_options = cost_options
        self.cost: CostModel = find_cost(config.cost, cost_options)
        self.target_bits: float | None = None
        self.target: float | None = None
        self.target_bit_flops: float | None = None
        if self.model is not None:
            bits = config.target_bits
            if bits is None:
                bits = default_target_bits(self.model, self.cost)
            self.target_bits = float(bits)
            if not searched:
                check_target(self.model, self.target_bits, by=self.cost)
            self.target = StaticCosts(self.model, self.cost).cost(self.target_bits)
            self.target_bit_flops = static_bit_flops(self.model, self.target_bits)

    @property
    def title(self) -> str:
        """What the cost is called in a line."""
        return "Bit-FLOPs" if self.config.cost == "bit_flops" else self.config.cost

    def terms(
        self, output: ScoredOutput, labels: Tensor, teacher_logits: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What the loss is made of, unweighted: scalars by name.

        Args:
            output: the model's logits ``[N, C]``, routing and scores ``[N, L, K]``.
            labels: ``[N]``, class indices.
            teacher_logits: ``[N, C]``, if there is a teacher.

        Returns:
            ``loss``, the task's; with a teacher ``distillation``; where layers are routed
            ``penalty`` and ``mutual_information``. The second and the last are in nats.
        """
        smoothing = self.config.label_smoothing
        logits = output.logits.float()
        terms = {"loss": F.cross_entropy(logits, labels, label_smoothing=smoothing)}
        if teacher_logits is not None:
            terms["distillation"] = distillation(logits, teacher_logits.float())
        if not output.routing.shape[1]:  # nothing is routed, so cost and choice cannot change
            return terms
        if self.config.penalty == "bit_flops":
            costs = cost(self.model, output.routing, self.cost)
            penalty = cost_penalty(costs, self.target)
        else:
            penalty = mean_width_penalty(mean_width(self.model, output.routing), self.target_bits)
        terms["penalty"] = penalty.float()
        terms["mutual_information"] = mutual_information(output.scores)
        return terms

    def total(self, terms: dict[str, Tensor], progress: float = 0.0) -> Tensor:
        """The weighted sum that is minimised; ``progress`` of the training is in [0, 1)."""
        total = terms["loss"]
        if "distillation" in terms:
            total = total + self.config.distillation * terms["distillation"]
        if "penalty" in terms:
            total = total + self.config.alpha * terms["penalty"]
            if progress < self.config.mutual_information_until:
                total = total - self.config.mutual_information * terms["mutual_information"]
        return total
