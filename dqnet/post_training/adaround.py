"""AdaRound: each weight is rounded up or down as the layer's output wants it.

Nagel et al. 2020, *Up or Down? Adaptive Rounding for Post-Training Quantization*,
https://arxiv.org/abs/2004.10568. Objective: eq. 21 with the inputs of the quantized network as in
eq. 25 (asymmetric reconstruction, without the activation function); relaxation: eqs. 22 and 23;
regularisation and annealing: eq. 24. The expectation over images is not sampled: the objective is
quadratic in the weights, so that the second moments of a layer's inputs are all it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dqnet.errors import UserError
from dqnet.layers import QuantLayer, quantized_layers
from dqnet.network import QuantizedModel
from dqnet.post_training.in_order import in_order
from dqnet.post_training.patches import sampled_patches
from dqnet.quantizers.affine import Affine
from dqnet.quantizers.grid import Grid

#: stretch of the sigmoid, eq. 23
ZETA, GAMMA = 1.1, -0.1
#: from and to which the exponent of eq. 24 is annealed
BETA = 20.0, 2.0
#: the part of the iterations without the regulariser
WARM_UP = 0.2
LEARNING_RATE = 1e-2
REGULARIZATION = 10.0


@dataclass(frozen=True)
class Moments:
    """Second moments of a layer's input patches, for each group of channels.

    Attributes:
        own: E[x̃ x̃ᵀ], ``[G, D, D]``, of the quantized network's.
        cross: E[x̃ xᵀ], likewise, with those of full precision.
    """

    own: Tensor
    cross: Tensor

    @classmethod
    def of(cls, quantized: Tensor, exact: Tensor) -> Moments:
        """Of patches ``[G, P, D]``."""
        count = quantized.shape[1]
        mirrored = quantized.transpose(1, 2) / count
        return cls(mirrored @ quantized, mirrored @ exact)

    def wanted(self, weight: Tensor) -> Tensor:
        """E[W x x̃ᵀ] of a weight ``[G, O/G, D]``."""
        return weight @ self.cross.transpose(1, 2)

    def gradient(self, rounded: Tensor, wanted: Tensor) -> Tensor:
        """That of E‖W̃ x̃ − W x‖² to W̃, ``[G, O/G, D]``: one product of matrices."""
        return (rounded @ self.own).sub_(wanted).mul_(2)


def adaround(
    model: QuantizedModel,
    images: Tensor,
    iterations: int = 1000,
    regularization: float = REGULARIZATION,
    done: Callable[[str], None] = lambda name: None,
    known: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Rounds the weights of every quantized layer, layer after layer.

    A layer's weight then holds values of its quantizer's grid, and its forward pass returns them.

    Args:
        model: a static network, calibrated, with affine or symmetric weights.
        images: ``[N, C, H, W]`` of the training part.
        iterations: of Adam, for each layer.
        regularization: λ of eq. 21, in units of the error for each weight that rounding to nearest
            makes: layers differ in it by orders of magnitude.
        done: called with the name of each layer when its weight is set.
        known: weights that an earlier call returned, or was given to keep; layers that are in it
            take theirs from it. It gets those of the others.

    Returns:
        The weight of every layer, by name.

    Raises:
        UserError: if a weight's quantizer has no evenly spaced grid; and as
            :func:`~dqnet.post_training.in_order.in_order`.
    """
    for name, layer in quantized_layers(model).items():
        if not isinstance(layer.weight_quantizer, Affine):
            raise UserError(
                f"AdaRound needs affine or symmetric weights; those of layer {name!r} are "
                f"{type(layer.weight_quantizer).__name__}'s"
            )
    rounded = {} if known is None else known

    def look(layer: QuantLayer, x: Tensor, output: Tensor) -> Tensor:
        return sampled_patches(layer, x)

    def change(name: str, layer: QuantLayer, x: Tensor, output: Tensor, exact: Tensor) -> None:
        if name not in rounded:
            moments = Moments.of(sampled_patches(layer, layer.quantized_input(x)), exact)
            grid = layer.weight_quantizer.grid(layer.weight, 0)
            rounded[name] = round_weight(
                layer.weight, grid, moments, _groups(layer), iterations, regularization
            )
        layer.weight.copy_(rounded[name])
        done(name)

    in_order(model, images, look, change)
    return rounded


def _groups(layer: QuantLayer) -> int:
    return 1 if isinstance(layer, nn.Linear) else layer.groups


@torch.enable_grad()
def round_weight(
    weight: Tensor,
    grid: Grid,
    moments: Moments,
    groups: int = 1,
    iterations: int = 1000,
    regularization: float = REGULARIZATION,
) -> Tensor:
    """The weight on its grid, each element up or down, with about the least error of the output.

    Args:
        weight: ``[O, ...]``.
        grid: its quantizer's.
        moments: of the layer's inputs, ``[G, D, D]``, D being the elements of ``weight[0]``.
        groups: G, of the convolution.
        iterations, regularization: as of :func:`adaround`.

    Returns:
        A tensor of the shape of ``weight``, without a gradient.
    """
    exact = weight.detach()

    def grouped(w: Tensor) -> Tensor:
        return w.reshape(groups, len(w) // groups, -1)

    ratio = exact / grid.scale
    floor = ratio.floor()
    fraction = (ratio - floor).clamp(1e-4, 1 - 1e-4)
    # h(V) is the fraction at first, and so the relaxed weight the exact one.
    logits = torch.logit((fraction - GAMMA) / (ZETA - GAMMA)).requires_grad_()
    optimizer = torch.optim.Adam([logits], LEARNING_RATE)
    low, high = grid.bottom - grid.zero_point, grid.top - grid.zero_point

    def value(up: Tensor) -> Tensor:
        return (floor + up).clamp(low, high) * grid.scale

    wanted = moments.wanted(grouped(exact))
    rounding = grouped(value((fraction >= 0.5).to(exact.dtype)) - exact)
    penalty = regularization * ((rounding @ moments.own) * rounding).sum() / exact.numel()
    for step in range(iterations):
        up = (torch.sigmoid(logits) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)
        rounded = grouped(value(up))
        outputs, gradients = [rounded], [moments.gradient(rounded.detach(), wanted)]
        progress = (step / iterations - WARM_UP) / (1 - WARM_UP)
        if progress > 0:
            beta = BETA[1] + (BETA[0] - BETA[1]) * (1 - progress)
            outputs.append(penalty * (1 - (2 * up - 1).abs().pow(beta)).sum())
            gradients.append(torch.ones_like(outputs[1]))
        (logits.grad,) = torch.autograd.grad(outputs, logits, gradients)
        optimizer.step()
    # h(V) is a half where V is zero, the stretch being symmetric.
    return value((logits.detach() >= 0).to(exact.dtype))
