"""Magnitude pruning with retraining, the first stage of Deep Compression.

Han, Pool, Tran and Dally, *Learning both Weights and Connections for Efficient Neural Networks*,
NeurIPS 2015, https://arxiv.org/abs/1506.02626; Han, Mao and Dally, *Deep Compression*, ICLR 2016,
https://arxiv.org/abs/1510.00149, section 2: weights below a threshold are removed, the others
retrained. The gradual schedule is eq. 1 of Zhu and Gupta, *To prune, or not to prune*, 2017,
https://arxiv.org/abs/1710.01878.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from dqnet.config import PruneConfig
from dqnet.errors import unknown_name
from dqnet.pruning.base import ratios, smallest
from dqnet.pruning.zeros import KeptZeros
from dqnet.rules import matches

SCOPES = ("layer", "global")


class Magnitude(KeptZeros):
    """The weights of smallest magnitude become zero, at once or gradually, and stay zero.

    With ``prune.scope=layer`` each layer loses its ratio; with ``global`` all layers that have no
    ratio of their own are one pool.
    """

    def _start(self, config: PruneConfig) -> dict[str, Tensor]:
        if config.scope not in SCOPES:
            raise unknown_name("prune.scope", config.scope, SCOPES)
        self._ratios = ratios(config, self.layers, "layer")
        own = [name for name in self.layers if matches(name, list(config.layers or {}))]
        pool = [name for name in self.layers if name not in own]
        self._pools = [[name] for name in (self.layers if config.scope == "layer" else own)]
        if config.scope == "global" and pool:
            self._pools.append(pool)
        self._until = config.until if self.updates else 0.0
        self._every = config.every
        zeros = {n: torch.zeros_like(m.weight, dtype=torch.bool) for n, m in self.layers.items()}
        return self._chosen(1.0) if self._until == 0 else zeros

    def _fixed(self, config: PruneConfig) -> bool:
        return self._until == 0

    def after_step(self, update: int) -> None:
        before, now = update / self.updates, (update + 1) / self.updates
        if now >= self._until > before:
            self.zeros = self._chosen(1.0)
        elif now < self._until and (update + 1) % self._every == 0:
            self.zeros = self._chosen(1 - (1 - now / self._until) ** 3)
        super().after_step(update)

    @torch.no_grad()
    def _chosen(self, share: float) -> dict[str, Tensor]:
        """The zeros once a share of each ratio is reached."""
        zeros: dict[str, Tensor] = {}
        for pool in self._pools:
            weights = [self.layers[name].weight for name in pool]
            magnitudes = torch.cat([weight.abs().flatten() for weight in weights])
            chosen = smallest(magnitudes, share * self._ratios[pool[0]])
            parts = chosen.split([weight.numel() for weight in weights])
            for name, weight, part in zip(pool, weights, parts, strict=True):
                zeros[name] = part.view(weight.shape)
                if part.all():
                    warnings.warn(
                        f"prune: layer {name!r} has no weight left: lower prune.ratio or give it "
                        "one of its own in prune.layers",
                        stacklevel=2,
                    )
        return zeros
