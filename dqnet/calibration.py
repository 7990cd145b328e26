"""Calibration: observers see some batches, then what depends on data is set.

Layers run in full precision meanwhile, so that what a quantizer sees does not depend on another's.
Without a calibration quantizers that need data take it from the first batch that they run on; LSQ's
paper does (Esser et al. 2020, section 2.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dqnet.errors import UserError
from dqnet.layers import QuantLayer, quantized_layers
from dqnet.residual import ValueQuantizer


def calibrate(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Sets from some batches what the quantizers of a converted model take from data.

    Args:
        model: a converted model; in its evaluation mode meanwhile. What was set before, by an
            earlier calibration or a first batch, is set again.
        batches: images ``[N, C, H, W]`` of the training part, on the model's device; at least one.
            Of several processes each brings its own, the same number of the same size.

    Returns:
        How many images were seen in this process.

    Raises:
        UserError: if the model has no quantized layer, a weight is not finite, no batch is given,
            all images are of one colour each, or a layer is too small for its quantizer.
    """
    named = quantized_layers(model)
    layers = list(named.values())
    between = [module for module in model.modules() if isinstance(module, ValueQuantizer)]
    if not layers:
        raise UserError("there is nothing to calibrate: the model has no quantized layer")
    for name, layer in named.items():
        if not layer.weight.isfinite().all():
            raise UserError(f"the weight of layer {name!r} has NaN or infinite values")
    images, structured = 0, False
    with torch.no_grad(), _observing(model, [*layers, *between]):
        for layer in layers:
            layer.weight_quantizer.observe(layer.weight_to_quantize())
        for batch in batches:
            images += len(batch)
            structured |= bool((batch.amax((2, 3)) != batch.amin((2, 3))).any())
            model(batch)
    if not images:
        raise UserError("calibration needs at least one batch of images")
    if not structured:
        raise UserError(
            f"calibration saw {images} images of one colour each, which say nothing about ranges; "
            "give training images"
        )
    quantizers = [q for layer in layers for q in (layer.weight_quantizer, layer.input_quantizer)]
    quantizers += [own.output_quantizer for own in between]
    for cls in {type(quantizer) for quantizer in quantizers}:
        cls.pool([quantizer for quantizer in quantizers if type(quantizer) is cls])
    for name, layer in named.items():
        try:
            layer.complete()
        except UserError as error:
            raise UserError(f"layer {name!r}: {error}") from error
    for value in between:
        value.output_quantizer.complete()
    return images


@contextmanager
def _observing(model: nn.Module, layers: list[QuantLayer | ValueQuantizer]) -> Iterator[None]:
    training = {module: module.training for module in model.modules()}
    model.eval()
    for layer in layers:
        layer.calibrating = True
    try:
        yield
    finally:
        for layer in layers:
            layer.calibrating = False
        for module, mode in training.items():
            module.training = mode
