"""The gradient of the choice, estimated from one precision that an image did not choose.

Of each image one such precision j is drawn, uniformly, and the gradient g to its choice estimated
as

    g_c for every precision, and (K − 1) · (g_j − g_c) more for j,

where c is the chosen one: the Horvitz-Thompson estimator (1952) with g_c, which is known, as
control variate. It is unbiased, and its variance is that of the differences g_k − g_c, which are
small where precisions answer alike; a constant added to all of g does not change the controller's
gradient. That is 4 passes instead of K + 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dqnet.layers.geometry import Geometry
from dqnet.layers.input_codes import InputCodes
from dqnet.layers.products import inner, scaled
from dqnet.layers.width_groups import WidthGroups


def estimate_others(
    grad_choice: Tensor,
    grad: Tensor,
    x: Tensor,
    weights: list[Tensor],
    gain: Tensor | None,
    drawn_widths: WidthGroups,
    geometry: Geometry,
    inputs: InputCodes,
) -> None:
    """Fills ``grad_choice [N, K]``, zero but for the chosen precisions, with the estimate.

    Args:
        grad_choice: changed in place.
        grad: the gradient to the layer's output ``[N, ...]``.
        x: the layer's input ``[N, ...]``.
        weights, gain, geometry, inputs: as of :func:`dqnet.layers.routed.routed`.
        drawn_widths: groups by the drawn precisions.
    """
    chosen = grad_choice.sum(1)
    buffer = drawn_widths.sort(x)
    buffer = buffer.clone() if buffer is x else buffer
    ordered_grad = drawn_widths.sort(grad)
    drawn = torch.zeros_like(grad_choice)  # sorted by the drawn precision
    for k, (start, end) in enumerate(drawn_widths.bounds):
        if end > start:
            rows = slice(start, end)
            scale = inputs.write(buffer[rows], k, buffer[rows], as_codes=True)
            y = geometry.forward(geometry.repeat(buffer[rows]), scaled(weights[k], gain, k, 1.0))
            drawn[rows, k] = inner(ordered_grad[rows], y).mul_(scale)
    drawn = drawn_widths.unsort([drawn])
    is_drawn = torch.zeros_like(drawn)
    for k, (start, end) in enumerate(drawn_widths.bounds):
        is_drawn[drawn_widths.order[start:end], k] = 1
    scale = len(weights) - 1
    grad_choice.copy_(chosen[:, None] + is_drawn * scale * (drawn - chosen[:, None]))
