"""A scale and an offset of a convolution's output, per width and channel.

The widths of one layer give outputs of different mean and spread, most of all at one and two bits,
and one batch norm behind them cannot suit all. Yu et al., *Any-Precision Deep Neural Networks*,
AAAI 2021 (https://arxiv.org/abs/1911.07346, section 3.2) keep a batch norm per width. Here images
of several widths are in one batch, so the norm stays shared and what differs stands before it,
where it is part of the weight and the bias and costs no pass over the output.

The weights of all widths are first brought to one norm, much as Jin et al. scale them (*AdaBits*,
CVPR 2020, https://arxiv.org/abs/1912.09666), so that one learning rate suits the gains of all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dqnet.layers.products import scaled
from dqnet.quantizers.half import widened


class WidthAffine(nn.Module):
    """``gain[k] · ‖w_K‖/‖w_k‖ · y + shift[k]`` for outputs y of the weight w_k at width k.

    Args:
        widths: how many widths, K.
        channels: output channels, O.
    """

    def __init__(self, widths: int, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(widths, channels))
        self.shift = nn.Parameter(torch.zeros(widths, channels))

    def gains(self, weights: Sequence[Tensor]) -> Tensor:
        """What outputs are multiplied by, ``[K, O]``; the ratio of norms counts as a constant.

        Args:
            weights: ``[O, ...]`` at every width, the last one's norm being the common one.
        """
        norms = torch.stack([widened(w.detach()).norm() for w in weights])
        # A weight may be all zeros at a low width, or at every one.
        ratio = torch.where(norms == 0, 1, norms[-1] / norms)
        return self.gain * ratio[:, None].to(self.gain.dtype)

    def scale(self, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """K weights ``[O, ...]``, each multiplied by its gain."""
        gains = self.gains(weights)
        return tuple(scaled(w, gains, k, 1.0) for k, w in enumerate(weights))

    def extra_repr(self) -> str:
        return f"widths={len(self.gain)}, channels={self.gain.shape[1]}"
