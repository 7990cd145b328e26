"""What is zero stays zero: retraining of a pruned network (Han et al. 2015, section 3.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dqnet.config import PruneConfig
from dqnet.errors import UserError
from dqnet.pruning.base import Pruning, check_zero, prunable_layers


class KeptZeros(Pruning):
    """Keeps the zeros that the weights have at the start, of a pruned checkpoint.

    Momentum, weight decay and a moving average would move them: they are set again after every
    step. Their gradients are zero, so that they count in no norm of the gradient.

    Attributes:
        zeros: bool by layer, of the shape of its weight: where it is zero and stays so.
    """

    def _set_up(self, config: PruneConfig, model: nn.Module, image_shape: tuple[int, ...]) -> None:
        self.layers = prunable_layers(model)
        self.zeros = self._start(config)
        check_zero(self.layers, fixed=self._fixed(config))
        self.restore()

    def _start(self, config: PruneConfig) -> dict[str, Tensor]:
        """The zeros before the first step."""
        zeros = {name: layer.weight.detach() == 0 for name, layer in self.layers.items()}
        if not any(mask.any() for mask in zeros.values()):
            raise UserError(
                "prune=keep keeps zeros, and the weights have none: start from a pruned network, "
                "model.checkpoint_path=FILE"
            )
        return zeros

    def _fixed(self, config: PruneConfig) -> bool:
        """Whether these are all that there will be."""
        return True

    @torch.no_grad()
    def after_backward(self) -> None:
        for name, layer in self.layers.items():
            if layer.weight.grad is not None:
                layer.weight.grad.masked_fill_(self.zeros[name], 0)

    def after_step(self, update: int) -> None:
        self.restore()

    @torch.no_grad()
    def restore(self) -> None:
        for network in self.networks:
            for name, zeros in self.zeros.items():
                network.get_submodule(name).weight.masked_fill_(zeros, 0)

    def state_dict(self) -> dict[str, Any]:
        return {"zeros": self.zeros}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, zeros in state["zeros"].items():
            self.zeros[name].copy_(zeros)
