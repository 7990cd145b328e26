"""Bit-FLOPs: multiply-accumulates × weight width × activation width (Liu et al. 2022, eq. 6)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dqnet.errors import UserError
from dqnet.network import LayerInfo, QuantizedModel, added_by_conversion

#: what a layer in full precision counts as, for weights and for activations
FULL_PRECISION_BITS = 32


def bit_flops(model: QuantizedModel, routing: Tensor, full_precision: bool = False) -> Tensor:
    """The Bit-FLOPs of each image, in convolutions and fully connected layers.

    What other modules multiply is not counted: products of activations (attention), weights that
    are mixed or generated on the way (timm's ``CondConv2d``), recurrent layers.

    Args:
        model: a converted model.
        routing: ``[N, L, K]``, one-hot (or probabilities, for an expected cost).
        full_precision: also count the layers kept in full precision, at 32 × 32 bits.

    Returns:
        float64 ``[N]``, exact for one-hot routings; differentiable in ``routing``.

    Raises:
        UserError: for a routing of another shape.
    """
    shape = model.routed_costs.shape
    if routing.dim() != 3 or routing.shape[1:] != shape:
        raise UserError(
            f"the routing has shape {list(routing.shape)}, it must be [N, {shape[0]}, {shape[1]}]"
        )
    constant = static_layers_bit_flops(model.layers)
    if full_precision:
        constant += full_precision_bit_flops(model.layers)
    routed = (routing.double() * model.routed_costs).sum((1, 2))
    return routed + constant


def static_bit_flops(model: QuantizedModel, bits: float) -> float:
    """What the network costs with all its quantized layers at ``bits`` (fractions allowed).

    It is the target of ``target_bits=bits``: bits² × the multiply-accumulates of the quantized
    layers; layers in full precision are not counted.
    """
    return float(bits) ** 2 * quantized_macs(model.layers)


def quantized_macs(layers: tuple[LayerInfo, ...]) -> int:
    """Multiply-accumulates of one image in the static and routed layers."""
    return sum(layer.macs for layer in layers if layer.role != "full")


def full_precision_bit_flops(layers: tuple[LayerInfo, ...]) -> int:
    """Bit-FLOPs of one image in the layers kept in full precision, at 32 × 32 bits."""
    return FULL_PRECISION_BITS**2 * sum(layer.macs for layer in layers if layer.role == "full")


def static_layers_bit_flops(layers: tuple[LayerInfo, ...]) -> int:
    """Bit-FLOPs in the static layers, the same for every image."""
    return sum(layer.macs * layer.widths[0] ** 2 for layer in layers if layer.role == "static")


def reachable_bits(model: QuantizedModel) -> tuple[float, float]:
    """The cheapest and the dearest routing, as widths: the range of ``target_bits``."""
    fixed, macs = static_layers_bit_flops(model.layers), quantized_macs(model.layers)
    costs = model.routed_costs
    low, high = costs[:, 0].sum().item(), costs[:, -1].sum().item()
    return ((fixed + low) / macs) ** 0.5, ((fixed + high) / macs) ** 0.5


def check_target(model: QuantizedModel, bits: float, name: str = "target_bits") -> float:
    """What the static network of ``bits`` costs, in Bit-FLOPs; ``name`` is of the setting.

    Raises:
        UserError: if no routing costs that much or that little.
    """
    low, high = reachable_bits(model)
    # Half a unit of the last printed digit: a range that is printed may be typed in again.
    if not low - 5e-4 <= bits <= high + 5e-4:
        raise UserError(
            f"{name}={bits:g} cannot be reached: with widths {model.widths} "
            f"this network's targets go from {low:.3f} to {high:.3f} bits"
        )
    return static_bit_flops(model, bits)


def mean_width(model: QuantizedModel, routing: Tensor) -> Tensor:
    """The mean width of each image over the routed layers: ``[N]``, differentiable.

    In a static network it is the mean width of the quantized layers.
    """
    if not len(model.routed_costs):
        static = [layer.widths[0] for layer in model.layers if layer.role == "static"]
        return routing.new_full((len(routing),), sum(static) / len(static))
    return (routing * routing.new_tensor(model.widths)).sum((1, 2)) / routing.shape[1]


@dataclass(frozen=True)
class ControllerCost:
    """What the controller adds for one image, and what the backbone has.

    Attributes:
        params, macs: of the controller; pooling counts one operation per element and statistic.
        backbone_params, backbone_macs: of the float model.
    """

    params: int
    macs: int
    backbone_params: int
    backbone_macs: int

    @property
    def params_ratio(self) -> float:
        return self.params / self.backbone_params

    @property
    def macs_ratio(self) -> float:
        return self.macs / self.backbone_macs


def controller_cost(model: QuantizedModel) -> ControllerCost:
    """Parameters and multiply-accumulates of the controller; zeros in a static network."""
    backbone = sum(
        p.numel() for name, p in model.backbone.named_parameters() if not added_by_conversion(name)
    )
    total = sum(layer.macs for layer in model.layers)
    controller = model.controller
    if controller is None:
        return ControllerCost(0, 0, backbone, total)
    params = sum(p.numel() for p in controller.parameters())
    return ControllerCost(params, controller.macs(), backbone, total)
