"""The bit controller that reads the backbone's early features: pool, two fully connected layers.

Liu et al., *Instance-Aware Dynamic Neural Network Quantization*, CVPR 2022, section 3.2.
"""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dqnet.config import ControllerConfig
from dqnet.controllers.base import ACTIVATIONS, Controller
from dqnet.processes import own_rows
from dqnet.trace import trace_model


class SharedController(Controller):
    """Features to scores ``[N, L, K]``: pool, dropout, two fully connected layers.

    Args:
        input_shape, layers, widths, config: see :func:`dqnet.controllers.build_controller`.
    """

    def __init__(
        self, input_shape: tuple[int, ...], layers: int, widths: int, config: ControllerConfig
    ) -> None:
        super().__init__(input_shape, layers, widths, config)
        # Feature maps have their channels first, tokens last.
        channels = input_shape[-1] if len(input_shape) == 2 else input_shape[0]
        self.body, channels = self._build_body(channels)
        features = 2 * channels if config.pool == "mean_std" else channels
        self.norm = OneValueBatchNorm1d(features) if config.batch_norm else nn.Identity()
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

    def _build_body(self, channels: int) -> tuple[nn.Module, int]:
        """What comes before pooling, and how many channels it returns."""
        return nn.Identity(), channels

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


class OneValueBatchNorm1d(_OneValueNorm, nn.BatchNorm1d):
    pass


class OneValueBatchNorm2d(_OneValueNorm, nn.BatchNorm2d):
    pass
