"""The bit controller: scores for every routed layer's widths, and the routing drawn from them.

Liu et al., *Instance-Aware Dynamic Neural Network Quantization*, CVPR 2022, section 3.2; the
straight-through Gumbel-softmax is that of Jang et al., 2017, https://arxiv.org/abs/1611.01144.
"""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dqnet.config import ControllerConfig
from dqnet.errors import UserError, unknown_name
from dqnet.processes import own_rows
from dqnet.trace import trace_model

KINDS = ("shared", "separate")
POOLS = ("mean", "mean_std")
ACTIVATIONS = {"relu": nn.ReLU, "none": nn.Identity}
#: channels of the separate controller's three convolutions
SEPARATE_CHANNELS = (8, 16, 32)


class Controller(nn.Module):
    """Features (or images) to scores ``[N, L, K]``: pool, dropout, two fully connected layers.

    Args:
        input_shape: ``(C, H, W)`` of the features (or images) that it reads, or ``(T, C)`` of
            tokens.
        layers: L, the number of routed layers.
        widths: K, the number of widths of each.
        config: its form; see :class:`dqnet.config.ControllerConfig`.

    Attributes:
        tau: the Gumbel-softmax temperature, above 0; the training loop anneals it.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        layers: int,
        widths: int,
        config: ControllerConfig | None = None,
    ) -> None:
        super().__init__()
        config = config or ControllerConfig()
        check_controller(config)
        self.config = config
        self.tau = config.tau
        self.input_shape = input_shape
        self.shape = layers, widths
        # Feature maps have their channels first, tokens last.
        channels = input_shape[-1] if len(input_shape) == 2 else input_shape[0]
        self.body = nn.Identity()
        if config.kind == "separate":
            self.body = _separate_body(channels)
            channels = SEPARATE_CHANNELS[-1]
        features = 2 * channels if config.pool == "mean_std" else channels
        self.norm = _BatchNorm1d(features) if config.batch_norm else nn.Identity()
        self.dropout = _Dropout(config.dropout)
        self.fc1 = nn.Linear(features, config.hidden)
        self.act = ACTIVATIONS[config.activation]()
        self.fc2 = nn.Linear(config.hidden, layers * widths)

    def forward(self, features: Tensor) -> Tensor:
        """``[N, C, H, W]`` or ``[N, T, C]`` to scores ``[N, L, K]``, log-probabilities up to a
        constant.

        It computes in the precision of its own parameters, mixed precision or not: it is small,
        and near ties are what it is there to decide.
        """
        with torch.autocast(features.device.type, enabled=False):
            x = self.pool(self.body(features.to(self.fc1.weight.dtype)))
            x = self.fc2(self.act(self.fc1(self.dropout(self.norm(x)))))
        return x.unflatten(1, self.shape)

    def macs(self) -> int:
        """Multiply-accumulates for one image; pooling counts one per element and statistic."""
        trace = trace_model(self, self.fc1.weight.new_zeros(1, *self.input_shape))
        pooled = prod(trace.shapes["body"][1:]) * (2 if self.config.pool == "mean_std" else 1)
        return pooled + sum(layer.macs for layer in trace.layers.values())

    def pool(self, x: Tensor) -> Tensor:
        """Global average pooling, with the standard deviation beside it in the mean_std form.

        Args:
            x: ``[N, C, H, W]`` or tokens ``[N, T, C]``.

        Returns:
            ``[N, C]``, in the mean_std form ``[N, 2C]``.
        """
        x = x.transpose(1, 2) if x.dim() == 3 else x.flatten(2)
        mean = x.mean(2)
        if self.config.pool == "mean":
            return mean
        # Thirty times as fast on a CPU as torch.var_mean, and no copy of x is kept. What rounding
        # takes away from a mean far above its spread does not matter to a normalised feature.
        variance = (torch.linalg.vecdot(x, x) / x.shape[2] - mean.square()).clamp_min(0)
        # The square root has an infinite slope at 0, where a constant channel is.
        return torch.cat((mean, (variance + 1e-6).sqrt()), 1)

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


class _Dropout(nn.Dropout):
    """The same draws for an image, like its Gumbel noise, whatever the number of processes."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        kept = own_rows(lambda n: x.new_empty(n, *x.shape[1:]).bernoulli_(1 - self.p), len(x))
        return x * kept / (1 - self.p)


class _OneValueNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm that accepts one value per channel (one image, one pixel) in training.

    One value has no spread: then the running statistics stand in for the batch's.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)
        return super().forward(x)


class _BatchNorm1d(_OneValueNorm, nn.BatchNorm1d):
    pass


class _BatchNorm2d(_OneValueNorm, nn.BatchNorm2d):
    pass


def one_hot_max(scores: Tensor) -> Tensor:
    """One-hot of the largest of the last axis, the first of equal ones; no gradient."""
    chosen = scores.detach().argmax(-1, keepdim=True)
    return torch.zeros_like(scores).scatter_(-1, chosen, 1.0)


def check_controller(config: ControllerConfig) -> None:
    """Raises UserError for another type, or a setting outside its range."""
    if not isinstance(config, ControllerConfig):
        raise UserError(
            f"controller {config!r} is not a dqnet.ControllerConfig, "
            "e.g. ControllerConfig(hidden=32)"
        )
    for key, valid in (("kind", KINDS), ("pool", POOLS), ("activation", ACTIVATIONS)):
        if getattr(config, key) not in valid:
            raise unknown_name(f"controller {key}", getattr(config, key), valid)
    if not isinstance(config.hidden, int) or config.hidden < 1:
        raise UserError(f"controller hidden {config.hidden} must be at least 1, an integer")
    if not 0 <= config.dropout < 1:
        raise UserError(f"controller dropout {config.dropout} must be in [0, 1)")
    if config.tau <= 0 or (config.tau_end is not None and config.tau_end <= 0):
        raise UserError("controller tau and tau_end must be above 0")


def _separate_body(channels: int) -> nn.Sequential:
    """Three strided convolutions on the image, the ablation's controller of its own."""
    layers: list[nn.Module] = []
    for out in SEPARATE_CHANNELS:
        layers += [
            nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=False),
            _BatchNorm2d(out),
            nn.ReLU(),
        ]
        channels = out
    return nn.Sequential(*layers)
