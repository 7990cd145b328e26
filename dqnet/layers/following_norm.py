"""Batch norms that are folded into the layers before them while the network is trained.

Krishnamoorthi 2018, *Quantizing deep convolutional networks for efficient inference: A whitepaper*,
section 3.2.2, https://arxiv.org/abs/1806.08342. An integer network computes a layer and its batch
norm as one: conv(x, Q(W s)) + β − μ s with s = γ/σ of each channel. So Q(W s) is what has to be
trained. The layer computes conv(x, Q(W s) / s), and the norm stays behind it, with its batch's
statistics in training and the long-term ones in evaluation, where it makes of that exactly the
above.

With σ of the batch, s changes from step to step and the scales of weights jitter: the form
``"uncorrected"``. In ``"corrected"`` σ is the long-term one, which costs nothing: the paper
multiplies by γ/σ of the batch first and corrects that to the long-term one afterwards.

A quantizer with a range for each channel that follows the weights' own is not changed by a factor
for each channel, Q(W s) = Q(W) s, and neither is then the network.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from dqnet.quantizers.half import widened

FORMS = ("corrected", "uncorrected")


class FollowingNorm:
    """The batch norm behind a layer; not a module, so that the layer does not have it twice.

    Attributes:
        norm: the norm, which is a module of the network.
        form: one of :data:`FORMS`.
    """

    def __init__(self, norm: _BatchNorm, form: str) -> None:
        self.norm = norm
        self.form = form

    @property
    def reads_batch(self) -> bool:
        """Whether the scale depends on the batch: uncorrected, and the norm is not frozen."""
        return self.form == "uncorrected" and self.norm.training

    def scale(self, output: Callable[[], Tensor] | None = None) -> Tensor:
        """γ/σ of each channel, ``[C]``, differentiable.

        Args:
            output: computes the layer's output ``[N, C, ...]`` in full precision, if there is a
                batch: needed for its own statistics.
        """
        norm = self.norm
        var = norm.running_var
        if self.reads_batch and output is not None:
            y = widened(output())
            var = y.var([0, *range(2, y.dim())], correction=0)
        scale = (var + norm.eps).rsqrt()
        return scale if norm.weight is None else scale * norm.weight
