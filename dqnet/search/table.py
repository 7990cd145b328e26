"""What a trained table of scores has learned: the differentiable search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dqnet.controllers import TableController
from dqnet.errors import UserError
from dqnet.search.base import Problem, search


@search("table")
@dataclass(frozen=True)
class LearnedTable:
    """The arg-max of each layer's scores: :mod:`dqnet.controllers.table`.

    The target is what the network was trained for.
    """

    meets_target: ClassVar[bool] = False
    reads_images: ClassVar[bool] = False
    chooses_apart: ClassVar[bool] = False

    def __call__(self, problem: Problem) -> list[int]:
        controller = problem.model.controller
        if not isinstance(controller, TableController):
            raise UserError(
                "search 'table' reads the scores of a network that was trained with "
                'ControllerConfig(kind="table")'
            )
        lacking = problem.prices.isinf().to(controller.scores.device)
        return controller.scores.detach().masked_fill(lacking, -float("inf")).argmax(1).tolist()
