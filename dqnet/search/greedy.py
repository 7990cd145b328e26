"""As few bits as keep a relative accuracy, layer by layer.

Moons et al. 2016, *Energy-efficient ConvNets through approximate computing*
(https://arxiv.org/abs/1603.06777), and *Embedded Deep Learning*, 2018, chapter 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from dqnet.errors import UserError
from dqnet.formats import Format
from dqnet.search.base import Problem, search
from dqnet.search.trials import Operations, Trials


@search("greedy")
@dataclass(frozen=True)
class Greedy:
    """Each layer's input gets as few bits as keep the accuracy, then its weight; then the next one.

    Layers before it run as chosen, those after it in full precision. The number of bits is found by
    bisection, which takes accuracy to fall with it; the one that is chosen has been tried. If the
    widest does not keep the accuracy either, it is taken.

    Attributes:
        accuracy: of the accuracy in full precision, in (0, 1].
        backward: from the last layer to the first.
    """

    meets_target: ClassVar[bool] = False
    reads_images: ClassVar[bool] = True
    chooses_apart: ClassVar[bool] = True

    accuracy: float = 0.99
    backward: bool = False

    def __post_init__(self) -> None:
        number = isinstance(self.accuracy, int | float) and not isinstance(self.accuracy, bool)
        if not number or not 0 < self.accuracy <= 1:
            raise UserError(f"accuracy {self.accuracy!r} of the search must be in (0, 1]")

    def __call__(self, problem: Problem) -> list[int]:
        grids = [_Grid(problem, layer) for layer in range(len(problem.candidates))]
        trials = Trials(Operations(problem.model, problem.batches[0][0][:2]), problem.batches)
        state = problem.journal.read()
        chosen: list[int | None] = state.get("chosen", [*trials.full])
        least = state.get("least")
        if least is None:
            least = self.accuracy * trials.hits(trials.full)
        order = range(len(grids))[:: -1 if self.backward else 1]
        left = [layer for layer in order if chosen[layer] is None]
        with problem.journal.progress("layers", len(grids), len(grids) - len(left)) as advance:
            for layer in left:
                trials.keep(chosen, layer)

                def enough(k: int, layer: int = layer) -> bool:
                    chosen[layer] = k
                    return trials.hits(chosen) >= least

                grid = grids[layer]
                widest = grid.weights[-1]
                own = _fewest([grid.at[widest, a] for a in grid.inputs], enough)
                read = problem.model.precisions[own].input
                chosen[layer] = _fewest([grid.at[w, read] for w in grid.weights], enough)
                problem.journal.write({"chosen": chosen, "least": least})
                advance()
        return [*chosen]


class _Grid:
    """A layer's precisions as pairs of formats.

    Attributes:
        weights, inputs: its formats, ascending.
        at: a pair of them → the index of the precision among the network's K.

    Raises:
        UserError: if some pair is missing.
    """

    def __init__(self, problem: Problem, layer: int) -> None:
        own = {k: problem.model.precisions[k] for k in problem.candidates[layer]}
        self.at = {(p.weight, p.input): k for k, p in own.items()}
        self.weights = _ascending([p.weight for p in own.values()])
        self.inputs = _ascending([p.input for p in own.values()])
        if len(self.at) != len(self.weights) * len(self.inputs):
            name = problem.model.routed_layers[layer].name
            raise UserError(
                f"search 'greedy' chooses inputs and weights apart, and layer {name!r} lacks some "
                "pairs of its formats: convert with plan=dqnet.search.all_pairs(model.plan)"
            )


def _ascending(formats: Sequence[Format]) -> list[Format]:
    return sorted(dict.fromkeys(formats), key=lambda own: (own.bits, str(own)))


def _fewest(columns: Sequence[int], enough: Callable[[int], bool]) -> int:
    """The first of ascending precisions that is enough; the last one if none is."""
    low, high = 0, len(columns) - 1
    while low < high:
        middle = (low + high) // 2
        if enough(columns[middle]):
            high = middle
        else:
            low = middle + 1
    return columns[high]
