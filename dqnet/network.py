"""A converted network: the backbone, its router and the controller that fills it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dqnet.backbone_interface import BackboneInterface
from dqnet.controllers import Controller, one_hot_max
from dqnet.errors import UserError
from dqnet.formats import Precision, as_written, common_precisions
from dqnet.layers.quant_layer import quantized_layers
from dqnet.layers.router import Router, check_one_hot
from dqnet.plan import LayerPlan, Plan
from dqnet.recording import refuse_recording, refuse_scripting, refuse_symbols
from dqnet.residual import ValueQuantizer
from dqnet.state_dicts import BACKBONE_PREFIX as BACKBONE_PREFIX  # it is read from here, too
from dqnet.state_dicts import accept_other_state_dicts
from dqnet.structure import REMEDY, Structure, plan_of_changed


class Output(NamedTuple):
    """What a converted model returns: logits ``[N, C]`` and the routing ``[N, L, K]``."""

    logits: Tensor
    routing: Tensor


class ScoredOutput(NamedTuple):
    """:class:`Output` with the controller's scores ``[N, L, K]``, which the training loss reads."""

    logits: Tensor
    routing: Tensor
    scores: Tensor


class QuantizedModel(BackboneInterface):
    """What :func:`dqnet.quantize` returns; it has the backbone's public attributes, too.

    Attributes:
        backbone: the converted model.
        controller: ``None`` in a static network.
        precisions: K candidates, ascending: of all routed layers together; in a static network
            those of its layers.
        candidates: bool ``[L, K]``: which of them each routed layer has; ``None``: every one has
            all.
        residual: the quantizers between layers; none unless asked for.
        prices: ``[L, K]``, what :meth:`route` takes from the scores in evaluation; ``None``:
            nothing, as it was trained. It is not part of the state dict.
    """

    def __init__(
        self,
        backbone: nn.Module,
        controller: Controller | None,
        split_point: str | None,
        plan: Plan,
        image_shape: tuple[int, ...],
        choice_gradient: str = "exact",
        overwritten: bool = False,
        residual: Mapping[str, ValueQuantizer] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.controller = controller
        self.split_point = split_point
        self._image_shape = tuple(image_shape)
        self._plan = plan
        self._structure = Structure(backbone, plan)
        self.precisions = _precisions(plan)
        columns = tuple(
            tuple(map(self.precisions.index, layer.precisions)) for layer in plan.routed
        )
        complete = all(len(own) == len(self.precisions) for own in columns)
        candidates = None
        if not complete:
            shape = len(columns), len(self.precisions)
            candidates = torch.zeros(shape, dtype=torch.bool)
            for row, own in zip(candidates, columns, strict=True):
                row[list(own)] = True
        self.candidates = candidates
        self.prices: Tensor | None = None
        names = tuple(layer.name for layer in plan.routed)
        self._router = Router(choice_gradient == "sampled", names, None if complete else columns)
        self._overwritten = overwritten  # the backbone changes the split point's output in place
        for column, layer in enumerate(plan.routed):
            module = backbone.get_submodule(layer.name)
            module.router, module.column = self._router, column
        # Keys of a ModuleDict have no dots.
        self.residual = nn.ModuleDict()
        for name, own in (residual or {}).items():
            self.residual[name.replace(".", "/")] = own
            backbone.get_submodule(name).register_forward_hook(own.hook)
        if controller is not None and split_point is not None:
            backbone.get_submodule(split_point).register_forward_hook(self._after_split_point)
        self.register_load_state_dict_pre_hook(accept_other_state_dicts)

    def _replicate_for_data_parallel(self) -> QuantizedModel:
        raise UserError("a converted model cannot run in nn.DataParallel; use torchrun")

    def __prepare_scriptable__(self) -> None:
        refuse_scripting()

    @property
    def plan(self) -> Plan:
        """What every layer runs at, in the network as it is now.

        Raises:
            UserError: if it was changed after its conversion into one that has no such plan.
        """
        if not torch.compiler.is_compiling() and not self._structure.unchanged:
            with self.unquantized():
                self._plan = plan_of_changed(self.backbone, self._structure, self._image_shape)
            self._structure = Structure(self.backbone, self._plan)
            self._router.names = tuple(layer.name for layer in self._plan.routed)
            self.precisions = _precisions(self._plan)
        return self._plan

    @property
    def value_quantizers(self) -> dict[str, ValueQuantizer]:
        """Those between layers: by the module whose output they quantize."""
        return {name.replace("/", "."): own for name, own in self.residual.items()}

    @property
    def image_shape(self) -> tuple[int, ...]:
        """``(C, H, W)`` of the images that it was converted for."""
        return self._image_shape

    @property
    def layers(self) -> tuple[LayerPlan, ...]:
        """The plan's: every convolution and fully connected layer, in execution order."""
        return self.plan.layers

    @property
    def routed_layers(self) -> tuple[LayerPlan, ...]:
        """The layers whose precision is chosen per image; the routing's second axis."""
        return self.plan.routed

    @property
    def widths(self) -> tuple[int | str, ...]:
        """The precisions as a user writes them: ``(2, 3, 4)``."""
        return as_written(self.precisions)

    def route(self, scores: Tensor) -> Tensor:
        """The controller's scores ``[N, L, K]`` to a one-hot routing of the same shape.

        In training the controller draws it; in evaluation it is the arg-max of score − price.
        """
        if self.controller.training or self.prices is None:
            return self.controller.route(scores)
        return one_hot_max(scores.double() - self.prices.to(scores.device)).to(scores)

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
            UserError: for a routing that is not one-hot or of another shape, if the model is
                running already, or if a dynamic network is recorded (``torch.jit.trace``,
                ``torch.export``, a CUDA graph).
        """
        refuse_symbols(images)
        shape = (images.shape[0], len(self._plan.routed), len(self.precisions))
        if routing is not None:
            check_one_hot(routing, shape)
            self._check_candidates(routing)
            if not routing.is_floating_point():
                routing = routing.to(images.dtype)
        used = scores = images.new_zeros(shape)
        if self.controller is None:
            logits = self.backbone(images)
        else:
            logits, used, scores = self._routed_pass(images, routing)
        return ScoredOutput(logits, used, scores) if with_scores else Output(logits, used)

    def _routed_pass(self, images: Tensor, forced: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        refuse_recording(images)
        with self._router.forward_pass(forced) as current:
            if self.split_point is None:
                self._run_controller(images)
            logits = self.backbone(images)
            if current.routing is None:
                raise UserError(
                    f"split point {self.split_point!r} was replaced after conversion, so that no "
                    f"controller runs; {REMEDY}"
                )
            return logits, current.routing, current.scores

    def _after_split_point(self, module: nn.Module, args: Any, output: Tensor) -> None:
        if not self._router.bypassed:
            self._run_controller(output)

    @torch.compiler.disable  # it fills the router, which is not a tensor
    def _run_controller(self, features: Tensor) -> None:
        if not self._router.running:
            raise UserError(
                f"split point {self.split_point!r} ran outside model(images): call the model, not "
                "its backbone, and use no gradient checkpointing that contains the split point"
            )
        current = self._router.current
        if current.scores is not None:  # a module that is called again does not route again
            return
        # A frozen controller's routing is given, not learned: nothing before it is trained to
        # change its mind, and layers need no gradient to their choice.
        trained = any(p.requires_grad for p in self.controller.parameters())
        if not trained:
            features = features.detach()
        elif self._overwritten and torch.is_grad_enabled():
            features = features.clone()  # the controller's gradient needs them as they are now
        scores = self.controller(features)
        if self.candidates is not None:
            # Finite, so that its product with a probability of zero is zero.
            lacking = ~self.candidates.to(scores.device)
            scores = scores.masked_fill(lacking, torch.finfo(scores.dtype).min / 4)
        current.scores = scores
        self._router.open(self.route(scores) if current.forced is None else current.forced)

    @contextmanager
    def fixed(self, chosen: Sequence[int], images: Tensor) -> Iterator[None]:
        """The backbone's modules may be called one by one meanwhile; the controller does not run.

        Args:
            chosen: L indices into ``precisions``: what every image runs each routed layer at.
            images: ``[N, C, H, W]``, of which the number and the device count.
        """
        index = torch.tensor(chosen, device=images.device)
        one = F.one_hot(index, len(self.precisions)).to(images.dtype)
        routing = one.expand(len(images), -1, -1)
        with self._router.forward_pass(routing) as current:
            current.scores = routing
            self._router.open_alike(routing)
            yield

    @contextmanager
    def unquantized(self) -> Iterator[None]:
        """The backbone runs in full precision meanwhile; no quantizer sees anything."""
        layers = (*quantized_layers(self).values(), *self.value_quantizers.values())
        self._router.bypassed = True
        for layer in layers:
            layer.unquantized = True
        try:
            yield
        finally:
            self._router.bypassed = False
            for layer in layers:
                layer.unquantized = False

    def _check_candidates(self, routing: Tensor) -> None:
        """Raises UserError for a choice that a layer does not have."""
        if self.candidates is None:
            return
        lacking = (routing.detach() != 0).any(0).cpu() & ~self.candidates
        if lacking.any():
            layer, k = lacking.nonzero()[0].tolist()
            raise UserError(
                f"layer {self._router.names[layer]!r} cannot run at {self.precisions[k]}; "
                f"it has {self._plan.routed[layer].widths}"
            )


def _precisions(plan: Plan) -> tuple[Precision, ...]:
    """The candidates of all routed layers, or what layers of a static network run at."""
    static = [layer for layer in plan.layers if layer.role == "static"]
    followers = [layer for layer in static if not layer.pinned] or static
    return common_precisions(plan.routed or followers)
