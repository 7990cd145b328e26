"""Scores that ignore the image: one table for all, so that what is learned is an allocation.

The differentiable search for layer-wise precisions (Wu et al. 2018, *Mixed Precision Quantization
of ConvNets via Differentiable Neural Architecture Search*, https://arxiv.org/abs/1812.00090; Cai,
Vasconcelos 2020, EdMIPS, https://arxiv.org/abs/2004.05795) in the frame of the dynamic network,
whose twin it is: trained by the same code, with the same penalty. As in the first paper a width is
sampled, here for each image; EdMIPS mixes the widths' outputs instead.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dqnet.config import ControllerConfig
from dqnet.controllers.base import Controller


class TableController(Controller):
    """A learned score for every layer and width, at first all equal.

    Of the configuration only the temperatures matter.
    """

    def __init__(
        self, input_shape: tuple[int, ...], layers: int, widths: int, config: ControllerConfig
    ) -> None:
        super().__init__(input_shape, layers, widths, config)
        self.scores = nn.Parameter(torch.zeros(layers, widths))

    def forward(self, features: Tensor) -> Tensor:
        """The same scores ``[N, L, K]`` for every image."""
        return self.scores.expand(len(features), -1, -1)

    def macs(self) -> int:
        """None: a trained table is a plan."""
        return 0
