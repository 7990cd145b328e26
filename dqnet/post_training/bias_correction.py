"""Bias correction: what quantization adds to a channel's mean is taken from its bias.

Nagel et al. 2019, *Data-Free Quantization Through Weight Equalization and Bias Correction*,
https://arxiv.org/abs/1906.04721, section 4.2 and, for means that are measured on images instead of
derived from batch norms, appendix D.
"""

from __future__ import annotations

from torch import Tensor, nn

from dqnet.errors import UserError
from dqnet.layers import QuantLayer, quantized_layers
from dqnet.network import QuantizedModel
from dqnet.post_training.in_order import in_order


def correct_biases(model: QuantizedModel, images: Tensor) -> None:
    """Sets each layer's bias so that its outputs' means are those of full precision.

    Layer after layer: every one is corrected for the errors of those before it, too.

    Args:
        model: a static network, calibrated, whose layers have biases (as they do where batch norms
            are folded into them).
        images: ``[N, C, H, W]`` of the training part.

    Raises:
        UserError: if a layer has no bias; and as :func:`~dqnet.post_training.in_order.in_order`.
    """
    for name, layer in quantized_layers(model).items():
        if layer.bias is None:
            raise UserError(
                f"layer {name!r} has no bias to correct: fold the batch norms into the layers "
                "(quant.fold_batch_norm=true)"
            )

    def change(name: str, layer: QuantLayer, x: Tensor, output: Tensor, mean: Tensor) -> Tensor:
        error = mean - _channel_means(layer, output)
        layer.bias.add_(error)
        return output + (error if isinstance(layer, nn.Linear) else error.view(-1, 1, 1))

    in_order(model, images, lambda layer, x, output: _channel_means(layer, output), change)


def _channel_means(layer: QuantLayer, output: Tensor) -> Tensor:
    """``[N, O, H, W]``, or ``[N, ..., O]`` of a fully connected layer, to ``[O]``."""
    channel = output.dim() - 1 if isinstance(layer, nn.Linear) else 1
    return output.mean([axis for axis in range(output.dim()) if axis != channel])
