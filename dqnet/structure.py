"""What a converted network consists of, which later changes to its modules must not leave behind.

Modules are replaced, removed and wrapped after conversion: a new classifier, fused branches,
adapters. The plan and its costs are then those of the network as it is; where that has no routing
of the recorded form any more, it is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from dqnet.errors import UserError
from dqnet.formats import Precision
from dqnet.layers import QuantLayer
from dqnet.plan import LayerPlan, Plan
from dqnet.rules import plan_of_trace, winograd_layer
from dqnet.state_dicts import COMPILED
from dqnet.trace import LAYERS, trace_model, warn_uncounted

#: begins every refusal
CHANGED = "the network was changed after its conversion"
REMEDY = "change the float network, then convert it"


class Structure:
    """The modules of a converted backbone at one time, and its plan.

    It may be copied and pickled together with the network, and is then of the copy.
    """

    def __init__(self, network: nn.Module, plan: Plan) -> None:
        modules = list(network.modules())
        self._parents = [(m, list(m._modules.values())) for m in modules if m._modules]
        self._leaves = [m for m in modules if not m._modules]
        self._forms = [(m, _form(m)) for m in modules if isinstance(m, LAYERS)]
        names = {name.replace(COMPILED, ""): module for name, module in network.named_modules()}
        #: modules that multiply activations alone included
        self.layers = {names[n.name]: n for n in plan.layers if n.name in names}

    @property
    def unchanged(self) -> bool:
        """Whether these are the network's modules still, and its layers of the same shape.

        It takes microseconds, and sees no change of another attribute or of a forward pass.
        """
        return (
            all(list(m._modules.values()) == children for m, children in self._parents)
            and not any(m._modules for m in self._leaves)
            and all(_form(m) == form for m, form in self._forms)
        )


def _form(layer: nn.Module) -> tuple[Any, ...]:
    """What decides how often a layer multiplies, apart from its input."""
    own = layer.__dict__
    weight = own["_parameters"].get("weight")
    shape = None if weight is None else weight.shape
    return shape, own.get("stride"), own.get("padding"), own.get("dilation")


def plan_of_changed(network: nn.Module, before: Structure, image_shape: tuple[int, ...]) -> Plan:
    """What the layers of a changed backbone run at, and how large they are.

    Args:
        network: a converted backbone that runs in full precision meanwhile; left as it is.
        before: what it was.
        image_shape: ``(C, H, W)`` of the images that costs are of.

    Raises:
        UserError: if it does not run on such images, has lost a routed layer or its last quantized
            one, or a layer has become one of unknown cost.
    """
    parameter = next(network.parameters())
    image = torch.zeros(1, *image_shape, device=parameter.device, dtype=parameter.dtype)
    try:
        with torch.compiler.set_stance("force_eager"):
            trace = trace_model(network, image, signs=False)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        line = str(error).partition("\n")[0]
        raise UserError(
            f"{CHANGED} and does not run on images {list(image_shape)} any more: {line}"
        ) from error

    def runs_at(name: str) -> tuple[tuple[Precision, ...], bool]:
        module = network.get_submodule(name)
        if not isinstance(module, QuantLayer):
            return (), False
        old = before.layers.get(module)
        return module.precisions, old is not None and old.pinned

    def multiplied(layer: LayerPlan) -> LayerPlan:
        module = network.get_submodule(layer.name)
        domain = getattr(module, "winograd", None)
        if domain is None:
            return layer
        return winograd_layer(layer, domain.how, module, trace.layers[layer.name])

    plan = plan_of_trace(trace, runs_at)
    plan = replace(plan, layers=tuple(map(multiplied, plan.layers)))
    _check_routed([network.get_submodule(layer.name) for layer in plan.routed], before)
    _check_known(network, plan, before.layers.values())
    _check_norms(network)
    if all(layer.role == "full" for layer in plan.layers):
        raise UserError(f"{CHANGED} and no layer is quantized any more; {REMEDY}")
    warn_uncounted(trace)
    layers = (replace(n, name=n.name.replace(COMPILED, "")) for n in plan.layers)
    return replace(plan, layers=tuple(layers))


def _check_routed(modules: list[nn.Module], before: Structure) -> None:
    """Raises UserError unless the routed layers are those that the routing has columns for."""
    old = {module: layer.name for module, layer in before.layers.items() if layer.role == "routed"}
    if modules == list(old):
        return
    gone = [f"routed layer {name!r} does not run" for m, name in old.items() if m not in modules]
    what = gone[0] if gone else "routed layers were added or run in another order"
    raise UserError(f"{CHANGED}: {what}, which the controller chooses widths for; {REMEDY}")


def _check_norms(network: nn.Module) -> None:
    """Raises UserError for a layer whose batch norm, folded into its weight, is gone."""
    modules = set(network.modules())
    for name, module in network.named_modules():
        norm = module.following if isinstance(module, QuantLayer) else None
        if norm is not None and norm.norm not in modules:
            raise UserError(
                f"{CHANGED}: the batch norm that is folded into layer {name!r} was replaced; "
                f"{REMEDY}"
            )


def _check_known(network: nn.Module, plan: Plan, before: Iterable[LayerPlan]) -> None:
    """Raises UserError for a module in a layer's place that may compute what is not counted."""
    counted = [layer.name for layer in plan.layers]
    modules = dict(network.named_modules())
    for layer in before:
        module = modules.get(layer.name)
        inside = any(name == layer.name or name.startswith(f"{layer.name}.") for name in counted)
        if layer.weights and not inside and not isinstance(module, nn.Identity | type(None)):
            raise UserError(
                f"{CHANGED}: layer {layer.name!r} is now a {type(module).__name__}, which is not "
                f"counted or does not run; {REMEDY}"
            )
