"""Training procedures that make zeros; what they have in common is in :mod:`.base`."""

from __future__ import annotations

from torch import nn

from dqnet.config import PruneConfig
from dqnet.errors import UserError, unknown_name
from dqnet.pruning.base import Pruning, prunable_layers, weight_sparsity
from dqnet.pruning.magnitude import Magnitude
from dqnet.pruning.soft_filters import SoftFilters
from dqnet.pruning.zeros import KeptZeros

NO_PRUNING = "none"
METHODS: dict[str, type[Pruning]] = {
    "magnitude": Magnitude,
    "soft_filters": SoftFilters,
    "keep": KeptZeros,
}


def build_pruning(
    config: PruneConfig,
    model: nn.Module,
    average: nn.Module | None,
    image_shape: tuple[int, ...],
    updates: int,
) -> Pruning | None:
    """What prunes a network in its training; ``None``: nothing does.

    Args:
        config: which method, and how much.
        model: a float or converted network with the weights that it starts from.
        average: the moving average of its weights, if there is one.
        image_shape: ``(C, H, W)``.
        updates: steps of the whole training; 0: the network is pruned at once and stays so.

    Raises:
        UserError: for an unknown method, a ratio outside of [0, 1), a pattern that matches nothing,
            a network with nothing to prune, or a quantizer that cannot write a zero.
    """
    if config.name == NO_PRUNING:
        if config.ratio or config.layers:
            raise UserError(
                "prune.ratio and prune.layers do nothing by themselves: choose a method, "
                "prune=magnitude or prune=soft_filters"
            )
        return None
    if config.name not in METHODS:
        raise unknown_name("prune", config.name, [NO_PRUNING, *METHODS])
    return METHODS[config.name](config, model, average, image_shape, updates)


__all__ = ["NO_PRUNING", "Pruning", "build_pruning", "prunable_layers", "weight_sparsity"]
