"""Soft Filter Pruning: filters of small norm become zero after every epoch, and go on learning.

He, Kang, Dong, Fu and Yang, *Soft Filter Pruning for Accelerating Deep Convolutional Neural
Networks*, IJCAI 2018, https://arxiv.org/abs/1808.06866, algorithm 1 and eq. 3 (the L2 norm).

The paper zeroes the convolution alone, so that the batch norm behind it still adds a constant and a
network without the filter is another one. Here the network that is evaluated and saved has zeros
in the norm as well. They could not be trained away from zero (with γ = 0 a filter has no gradient,
with a ReLU's input of 0 neither has β), so the norm's values are set aside and put back before
the next epoch, which then begins as the paper's does.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dqnet.config import PruneConfig
from dqnet.errors import UserError
from dqnet.network import QuantizedModel
from dqnet.pruning.base import Pruning, check_zero, prunable_layers, ratios, smallest
from dqnet.pruning.free_filters import free_filters


class SoftFilters(Pruning):
    """After every epoch ⌊ratio · filters⌋ of each layer whose filters can be removed alone go.

    Without any epoch they go at once, which is the pruning by norm that soft pruning is compared
    with: Li et al. 2017, *Pruning Filters for Efficient ConvNets*, https://arxiv.org/abs/1608.08710
    (with the L1 norm).

    Attributes:
        behind: by layer: the modules that also hold values of each filter.
        aside: of each network: its values at the end of the epoch, by name, to be put back.
        at_once: by layer: the filters that went without any epoch, bool ``[filters]``.
    """

    def _set_up(self, config: PruneConfig, model: nn.Module, image_shape: tuple[int, ...]) -> None:
        full = model.unquantized() if isinstance(model, QuantizedModel) else nullcontext()
        with full:
            found = free_filters(self.networks[0], image_shape)
        layers = prunable_layers(model)
        self.behind = {name: behind for name, behind in found.items() if name in layers}
        if not self.behind:
            raise UserError(
                "prune=soft_filters: the network has no convolution whose filters can be removed "
                "alone; prune=magnitude prunes single weights"
            )
        self._ratios = ratios(config, self.behind, "layer whose filters can be removed alone")
        check_zero({name: layers[name] for name in self.behind}, fixed=False)
        self.aside: list[dict[str, Tensor]] = [{} for _ in self.networks]
        self.at_once: dict[str, Tensor] = {}
        if not self.updates:  # without an epoch there is no end of one
            self.at_once = {name: self._chosen(self.networks[0], name) for name in self.behind}
            self.restore()

    def _chosen(self, network: nn.Module, name: str) -> Tensor:
        """The filters of a layer that go, bool ``[filters]``."""
        weight = network.get_submodule(name).weight
        return smallest(weight.flatten(1).norm(dim=1), self._ratios[name])

    @torch.no_grad()
    def restore(self) -> None:
        for network in self.networks:
            for name, chosen in self.at_once.items():
                for holder in (name, *self.behind[name]):
                    for parameter in network.get_submodule(holder).parameters(recurse=False):
                        parameter[chosen] = 0

    @torch.no_grad()
    def before_epoch(self) -> None:
        for network, aside in zip(self.networks, self.aside, strict=True):
            for name, value in aside.items():
                network.get_parameter(name).copy_(value)
            aside.clear()

    @torch.no_grad()
    def after_epoch(self) -> None:
        for network, aside in zip(self.networks, self.aside, strict=True):
            for name, behind in self.behind.items():
                layer = network.get_submodule(name)
                chosen = self._chosen(network, name)
                for holder in (name, *behind):
                    for kind, parameter in network.get_submodule(holder).named_parameters(
                        recurse=False
                    ):
                        # An average is only looked at: its filters are not trained.
                        if parameter is not layer.weight or network is not self.networks[0]:
                            aside[f"{holder}.{kind}"] = parameter.detach().clone()
                        parameter[chosen] = 0

    def state_dict(self) -> dict[str, Any]:
        return {"aside": self.aside}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for network, aside, values in zip(self.networks, self.aside, state["aside"], strict=True):
            aside.clear()
            for name, value in values.items():
                aside[name] = value.to(network.get_parameter(name).device)
