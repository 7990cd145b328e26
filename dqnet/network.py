"""A converted network: the backbone, its router and the controller that fills it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dqnet.controller import Controller, one_hot_max
from dqnet.errors import UserError
from dqnet.layers.conv import check_one_hot
from dqnet.layers.router import Router

#: a converted backbone's parameter names begin with it
BACKBONE_PREFIX = "backbone."


def added_by_conversion(name: str) -> bool:
    """Whether a backbone's parameter or buffer is one that the float model does not have."""
    return ".quantizer." in name or ".affine." in name


class Output(NamedTuple):
    """What a converted model returns: logits ``[N, C]`` and the routing ``[N, L, K]``."""

    logits: Tensor
    routing: Tensor


class ScoredOutput(NamedTuple):
    """:class:`Output` with the controller's scores ``[N, L, K]``, which the training loss reads."""

    logits: Tensor
    routing: Tensor
    scores: Tensor


@dataclass(frozen=True)
class LayerInfo:
    """One layer of a converted network.

    Attributes:
        name: its module name in the float model.
        role: ``"full"`` precision, ``"static"`` or ``"routed"``.
        widths: its candidate widths; ``(32,)`` in full precision.
        macs: multiply-accumulates for one image.
    """

    name: str
    role: str
    widths: tuple[int, ...]
    macs: int


class QuantizedModel(nn.Module):
    """What :func:`dqnet.quantize` returns.

    Attributes:
        backbone: the converted model.
        controller: ``None`` in a static network.
        layers: every convolution (of any kind) and fully connected layer, in execution order.
        widths: the candidate widths of the routed layers (of all layers in a static network).
        budget_lambda: λ, the price of Bit-FLOPs in evaluation: above 0 cheaper than trained, below
            0 dearer; see :meth:`route`. It is no part of the state dict.
    """

    def __init__(
        self,
        backbone: nn.Module,
        controller: Controller | None,
        split_point: str | None,
        layers: tuple[LayerInfo, ...],
        widths: tuple[int, ...],
        choice_gradient: str = "exact",
        overwritten: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.controller = controller
        self.split_point = split_point
        self.layers = layers
        self.widths = widths
        self.budget_lambda = 0.0
        names = tuple(layer.name for layer in self.routed_layers)
        self._router = Router(choice_gradient == "sampled", names)
        self._overwritten = overwritten  # the backbone changes the split point's output in place
        self._forced: Tensor | None = None
        self._scores: Tensor | None = None
        self._used: Tensor | None = None
        for column, layer in enumerate(self.routed_layers):
            module = backbone.get_submodule(layer.name)
            module.router, module.column = self._router, column
        if controller is not None and split_point is not None:
            backbone.get_submodule(split_point).register_forward_hook(self._after_split_point)
        squares = [[w * w * layer.macs for w in widths] for layer in self.routed_layers]
        costs = torch.tensor(squares, dtype=torch.int64).reshape(-1, len(widths))
        self.register_buffer("routed_costs", costs, persistent=False)
        self.register_load_state_dict_pre_hook(_accept_float_state_dict)

    def _replicate_for_data_parallel(self) -> QuantizedModel:
        raise UserError("a converted model cannot run in nn.DataParallel; use torchrun")

    @property
    def routed_layers(self) -> tuple[LayerInfo, ...]:
        """The layers whose width is chosen per image; the routing's second axis."""
        return tuple(layer for layer in self.layers if layer.role == "routed")

    @property
    def relative_costs(self) -> Tensor:
        """Bit-FLOPs of each routed layer at each width over their mean: float64 ``[L, K]``.

        One constant divides them all, so λ means the same in every layer, and choosing by score
        − λ · relative cost maximises the sum of the scores at a given cost of the network.
        """
        return self.routed_costs / self.routed_costs.double().mean()

    def route(self, scores: Tensor) -> Tensor:
        """The controller's scores ``[N, L, K]`` to a one-hot routing of the same shape.

        In training the controller draws it; in evaluation it is the arg-max of score − λ · relative
        cost, with λ = ``budget_lambda``.
        """
        if self.controller.training or not self.budget_lambda:
            return self.controller.route(scores)
        return one_hot_max(priced(scores, self.relative_costs, self.budget_lambda)).to(scores)

    def forward(
        self, images: Tensor, routing: Tensor | None = None, with_scores: bool = False
    ) -> Output | ScoredOutput:
        """Classifies images, each at its own widths.

        Args:
            images: ``[N, C, H, W]``.
            routing: one-hot ``[N, L, K]``, of any type, to run with instead of the controller's.
            with_scores: return the controller's scores as well.

        Returns:
            Logits and the routing used; in a static network L is 0.

        Raises:
            UserError: for a routing that is not one-hot or of another shape, or if the model is
                running already.
        """
        shape = (len(images), len(self.routed_layers), len(self.widths))
        if routing is not None:
            check_one_hot(routing, shape)
            if not routing.is_floating_point():
                routing = routing.to(images.dtype)
        used = scores = images.new_zeros(shape)
        if self.controller is None:
            logits = self.backbone(images)
        else:
            self._begin(routing)
            try:
                if self.split_point is None:
                    self._run_controller(images)
                logits = self.backbone(images)
                used, scores = self._used, self._scores
            finally:
                self._end()
        return ScoredOutput(logits, used, scores) if with_scores else Output(logits, used)

    def _after_split_point(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self._run_controller(output)

    @torch.compiler.disable
    def _begin(self, routing: Tensor | None) -> None:
        self._router.begin()
        self._forced = routing

    @torch.compiler.disable
    def _end(self) -> None:
        self._forced = self._scores = self._used = None
        self._router.end()

    @torch.compiler.disable  # it fills the router, which is not a tensor
    def _run_controller(self, features: Tensor) -> None:
        if not self._router.running:
            raise UserError(
                f"split point {self.split_point!r} ran outside model(images): call the model, not "
                "its backbone, and use no gradient checkpointing that contains the split point"
            )
        if self._scores is not None:  # a module that is called again does not route again
            return
        # A frozen controller's routing is given, not learned: nothing before it is trained to
        # change its mind, and layers need no gradient to their choice.
        trained = any(p.requires_grad for p in self.controller.parameters())
        if not trained:
            features = features.detach()
        elif self._overwritten and torch.is_grad_enabled():
            features = features.clone()  # the controller's gradient needs them as they are now
        self._scores = self.controller(features)
        forced = self._forced
        self._used = self.route(self._scores) if forced is None else forced
        self._router.open(self._used)


def priced(scores: Tensor, relative_costs: Tensor, budget_lambda: float) -> Tensor:
    """Scores ``[N, L, K]`` less λ · relative cost ``[L, K]``, in float64."""
    return scores.double() - budget_lambda * relative_costs


def _accept_float_state_dict(
    model: QuantizedModel, state_dict: dict[str, Any], prefix: str, *args: Any
) -> None:
    """Lets ``load_state_dict`` take the float model's own state dict, as before conversion.

    What the float model lacks (the controller, quantizer parameters) keeps its values, except that
    quantizers initialise themselves again from the new weights.
    """
    own = model.state_dict(prefix=prefix)
    theirs = [key for key in state_dict if key.startswith(prefix)]
    if not theirs or any(key in own for key in theirs):
        return
    for key in theirs:
        state_dict[prefix + BACKBONE_PREFIX + key[len(prefix) :]] = state_dict.pop(key)
    for key, value in own.items():
        if added_by_conversion(key) or key.startswith(prefix + "controller."):
            fresh = key.endswith(".quantizer.initialized")
            state_dict.setdefault(key, torch.zeros_like(value) if fresh else value)
