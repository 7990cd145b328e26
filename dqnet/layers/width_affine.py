"""A scale and an offset of a convolution's output, per width and channel.

The widths of one layer give outputs of different mean and spread, most of all at one and two bits,
and one batch norm behind them cannot suit all. Yu et al., *Any-Precision Deep Neural Networks*,
AAAI 2021 (https://arxiv.org/abs/1911.07346, section 3.2) keep a batch norm per width. Here images
of several widths are in one batch, so the norm stays shared and what differs stands before it,
where it is part of the weight and the bias and costs no pass over the output.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

#: the largest initial gain, for channels that a width leaves all but empty
LARGEST_GAIN = 100.0


class WidthAffine(nn.Module):
    """``gain[k] · y + shift[k]`` for outputs y at width k.

    Args:
        widths: how many widths, K.
        channels: output channels, O.
    """

    def __init__(self, widths: int, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(widths, channels))
        self.shift = nn.Parameter(torch.zeros(widths, channels))
        self.register_buffer("initialized", torch.tensor(False))
        self.prepared = False  # the buffer's value, kept here to spare a device read per pass

    @torch.no_grad()
    def initialize(self, weights: Sequence[Tensor]) -> None:
        """Gives every width's weight the norm of the last one's, output channel by channel.

        Outputs are not aligned themselves, by their spread over a batch: that would raise the
        quantization noise of the lowest widths to the size of a signal.

        Args:
            weights: ``[O, C, kH, kW]`` at every width.
        """
        norms = [w.flatten(1).norm(dim=1) for w in weights]
        for k, norm in enumerate(norms):
            # A channel may be all zeros at one width, or at each of them.
            gain = norms[-1] / norm.maximum(norms[-1] / LARGEST_GAIN)
            self.gain[k] = torch.where(norms[-1] > 0, gain, 1)
        self.initialized.fill_(True)

    def scale(self, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """K weights ``[O, C, kH, kW]``, each multiplied by its gain."""
        return tuple(w * g.view(-1, 1, 1, 1) for w, g in zip(weights, self.gain, strict=True))

    def extra_repr(self) -> str:
        return f"widths={len(self.gain)}, channels={self.gain.shape[1]}"

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.prepared = False
