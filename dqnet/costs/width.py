"""The mean width: bits without regard to how large a layer is."""

from __future__ import annotations

from torch import Tensor

from dqnet.network import QuantizedModel


def mean_width(model: QuantizedModel, routing: Tensor) -> Tensor:
    """The mean width of each image over the routed layers: ``[N]`` in bits, differentiable.

    In a static network it is the mean width of the quantized layers.
    """
    if not model.routed_layers:
        static = [layer.precisions[0].width for layer in model.layers if layer.role == "static"]
        return routing.new_full((len(routing),), sum(static) / len(static))
    widths = routing.new_tensor([p.width for p in model.precisions])
    return (routing * widths).sum((1, 2)) / routing.shape[1]
