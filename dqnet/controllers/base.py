"""What controllers have in common: the routing that is drawn from their scores.

Liu et al., *Instance-Aware Dynamic Neural Network Quantization*, CVPR 2022, section 3.2; the
straight-through Gumbel-softmax is that of Jang et al., 2017, https://arxiv.org/abs/1611.01144.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dqnet.config import ControllerConfig
from dqnet.errors import UserError, unknown_name
from dqnet.processes import own_rows

POOLS = ("mean", "mean_std")
ACTIVATIONS = {"relu": nn.ReLU, "none": nn.Identity}


class Controller(nn.Module):
    """Scores ``[N, L, K]`` for every image, and a routing of them.

    A subclass writes :meth:`forward` and :meth:`macs`.

    Args:
        input_shape, layers, widths, config: see :func:`dqnet.controllers.build_controller`.

    Attributes:
        shape: ``(L, K)``.
        tau: the Gumbel-softmax temperature, above 0; the training loop anneals it.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        layers: int,
        widths: int,
        config: ControllerConfig,
    ) -> None:
        super().__init__()
        self.config = config
        self.tau = config.tau
        self.input_shape = input_shape
        self.shape = layers, widths

    def forward(self, features: Tensor) -> Tensor:
        """``[N, C, H, W]`` or ``[N, T, C]`` to scores ``[N, L, K]``, log-probabilities up to a
        constant."""
        raise NotImplementedError

    def macs(self) -> int:
        """Multiply-accumulates for one image; pooling counts one per element and statistic."""
        raise NotImplementedError

    def route(self, scores: Tensor) -> Tensor:
        """Scores ``[N, L, K]`` to a one-hot routing of the same shape.

        In training a sample of softmax(scores), with the gradient of the Gumbel-softmax at
        temperature ``tau``; in evaluation the arg-max, without noise.
        """
        if not self.training:
            return one_hot_max(scores)
        # Uniforms can round to 0, whose Gumbel value is infinite; exponentials are never 0.
        noise = own_rows(
            lambda n: scores.new_empty(n, *scores.shape[1:]).exponential_(), len(scores)
        )
        gumbel = -noise.log()
        soft = ((scores + gumbel) / self.tau).softmax(-1)
        # soft − soft is exactly zero, so the routing is exactly one-hot.
        return one_hot_max(soft) + (soft - soft.detach())


def one_hot_max(scores: Tensor) -> Tensor:
    """One-hot of the largest of the last axis, the first of equal ones; no gradient."""
    chosen = scores.detach().argmax(-1, keepdim=True)
    return torch.zeros_like(scores).scatter_(-1, chosen, 1.0)


def check_config(config: ControllerConfig) -> None:
    """Raises UserError for a setting outside its range; the kind is not looked at."""
    for key, valid in (("pool", POOLS), ("activation", ACTIVATIONS)):
        if getattr(config, key) not in valid:
            raise unknown_name(f"controller {key}", getattr(config, key), valid)
    if not isinstance(config.hidden, int) or config.hidden < 1:
        raise UserError(f"controller hidden {config.hidden} must be at least 1, an integer")
    if not 0 <= config.dropout < 1:
        raise UserError(f"controller dropout {config.dropout} must be in [0, 1)")
    if config.tau <= 0 or (config.tau_end is not None and config.tau_end <= 0):
        raise UserError("controller tau and tau_end must be above 0")
