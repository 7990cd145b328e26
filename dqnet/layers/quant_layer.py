"""What a quantized convolution and a quantized fully connected layer have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dqnet.errors import UserError
from dqnet.formats import Format, Precision, as_written, distinct, parse_precisions
from dqnet.layers.following_norm import FollowingNorm
from dqnet.layers.geometry import Geometry
from dqnet.layers.gradient_bits import quantize_gradient
from dqnet.layers.input_codes import InputCodes
from dqnet.layers.quantization import Quantization
from dqnet.layers.routed import Pass, routed
from dqnet.layers.router import Column, Router, check_one_hot
from dqnet.layers.weight_cache import WeightCache
from dqnet.layers.width_affine import WidthAffine
from dqnet.layers.width_groups import WidthGroups
from dqnet.processes import gathered
from dqnet.quantizers import Codes, Quantizer, build_quantizers
from dqnet.recording import captured, refuse_recording, refuse_scripting, tracer


class QuantLayer(nn.Module):
    """A layer with one full-precision weight that runs at any of K precisions.

    With one it is a static quantized layer. With several, each image of the batch runs at the one
    that its ``choice`` gives it. To be mixed into a layer of PyTorch's, before it.

    Attributes:
        precisions: the K candidates, ascending.
        weight_quantizer, input_quantizer: of the different formats among them.
        geometry: how weight and input are multiplied.
        affine: scale and shift of each precision; ``None`` without.
        following: the batch norm whose scale is quantized with the weight; ``None``: without.
        gradient_bits: as of :class:`Quantization`.
        router, column: where a converted model's layer finds its choice.
        unquantized: whether the layer runs in full precision meanwhile.
        calibrating: whether it does, and its input's quantizer observes.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    geometry: Geometry

    def _set_up(
        self, widths: Sequence[int | str | Precision], how: Quantization, signed: bool, outputs: int
    ) -> None:
        """Gives the layer, whose own parameters stand, what quantization adds to it."""
        self.precisions = parse_precisions(widths)
        weight_formats, weight_index = distinct(p.weight for p in self.precisions)
        input_formats, input_index = distinct(p.input for p in self.precisions)
        weight_quantizer, input_quantizer = build_quantizers(
            how.quantizer, weight_formats, input_formats,
            signed=signed, channels=outputs, options=how.options,
        )  # fmt: skip
        self.weight_quantizer: Quantizer = weight_quantizer
        self.input_quantizer: Quantizer = input_quantizer
        self._weight_index = weight_index
        self._input_index = input_index
        several = len(self.precisions) > 1
        self.affine = (
            WidthAffine(len(self.precisions), outputs) if how.width_affine and several else None
        )
        self.following: FollowingNorm | None = None
        self.gradient_bits = how.gradient_bits
        self.router: Router | None = None
        self.column: int | None = None
        self.unquantized = False
        self.calibrating = False
        self._weights = WeightCache()
        # Whether the weight may have changed since its quantizer followed it: by a step, or in a
        # copy that averages. Rounded weights, once loaded, keep their grid.
        self._behind = True
        if weight_quantizer.keeps_weight:
            self.weight.requires_grad_(False)
        self.to(self.weight)  # device= and dtype= are of all parameters

    @property
    def widths(self) -> tuple[int | str, ...]:
        """The precisions as a user writes them: ``(2, 3, 4)``."""
        return as_written(self.precisions)

    def __prepare_scriptable__(self) -> None:
        refuse_scripting()

    def train(self, mode: bool = True) -> QuantLayer:
        """As of any module; quantized weights that evaluation has kept are dropped."""
        self._weights.clear()
        if self.training and not mode and self._behind and self.weight_quantizer.ready:
            with torch.no_grad():
                self.weight_quantizer.follow(self.weight_to_quantize())
            self._behind = False
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._behind = False

    def observe(self, x: Tensor) -> None:
        """Shows the input of a calibration batch to the input's quantizer."""
        self.input_quantizer.observe(gathered(x.detach()))

    def complete(self) -> None:
        """Ends a calibration: the quantizers take what they have observed."""
        self.weight_quantizer.complete()
        self.input_quantizer.complete()

    def norm_scale(self, x: Tensor | None = None) -> Tensor | None:
        """What the weight is multiplied by before it is quantized, and divided by afterwards.

        Args:
            x: the input, on whose statistics it may depend in training.

        Returns:
            ``[O, 1, ...]``, or ``None`` if no norm is folded into the weight.
        """
        if self.following is None:
            return None

        def output() -> Tensor:
            return self.geometry.forward(self.geometry.repeat(x), self.weight)

        scale = self.following.scale(None if x is None else output)
        return scale.view(-1, *[1] * (self.weight.dim() - 1)).to(self.weight.dtype)

    def weight_to_quantize(self, scale: Tensor | None = None) -> Tensor:
        """The weight as its quantizer sees it: of an integer network, whose norms are folded.

        Args:
            scale: from :meth:`norm_scale`; by default the long-term one.
        """
        scale = self.norm_scale() if scale is None else scale
        return self.weight if scale is None else self.weight * scale

    def prepare(self, x: Tensor, scale: Tensor | None = None) -> None:
        """Lets quantizers that need data set themselves from this batch, or follow it."""
        if self.training or not self.weight_quantizer.ready:
            with torch.no_grad():
                weight = self.weight_to_quantize(scale)
                self.weight_quantizer.prepare(weight)
                if self.training:
                    self.weight_quantizer.follow(weight)
        if not self.input_quantizer.ready:
            # The whole batch of all processes, whatever precisions its images chose.
            self.input_quantizer.prepare(gathered(x.detach()))
        if self.training:
            self._behind = True
            self.input_quantizer.follow(x)

    def quantized_weights(self, scale: Tensor | None = None) -> tuple[Tensor, ...]:
        """The weight at each of the K precisions, differentiable.

        Args:
            scale: from :meth:`norm_scale`; by default the long-term one.
        """
        scale = self.norm_scale() if scale is None else scale
        different = self.weight_quantizer.all_formats(self.weight_to_quantize(scale))
        if scale is not None:
            # A channel whose γ is zero adds nothing, whatever its weight. Unquantized, γ has the
            # gradient that it needs to become another number.
            zero = scale == 0
            divisor = scale.masked_fill(zero, 1)
            different = tuple(self.weight.where(zero, own / divisor) for own in different)
        return tuple(different[i] for i in self._weight_index)

    def encoded_weights(self) -> tuple[tuple[Format, Codes], ...]:
        """The weight in every different format among the K precisions, as codes.

        Raises:
            UserError: if the weight's quantizer has none, or waits for data.
        """
        quantizer = self.weight_quantizer
        if not quantizer.ready:
            raise UserError("the weight's quantizer has no range yet: run dqnet.calibrate first")
        weight = self.weight_to_quantize()
        return tuple((own, quantizer.encode(weight, k)) for k, own in enumerate(quantizer.formats))

    def input_format(self, k: int) -> int:
        """The index of precision k's input format, as the input's quantizer counts."""
        return self._input_index[k]

    def quantized_input(self, x: Tensor, k: int = 0) -> Tensor:
        """The input ``[N, ...]`` at precision k, differentiable."""
        return self.input_quantizer(x, self._input_index[k])

    def _run(self, x: Tensor, choice: Tensor | None, grouped: bool = True) -> Tensor:
        """Runs every image of ``[N, ...]`` at its precision, or in full precision.

        Args:
            grouped: whether to use the form that is faster for convolutions, and is needed where
                there are several precisions.
        """
        if self.calibrating:
            self.observe(x)
        if self.calibrating or self.unquantized:
            return self.geometry.forward(self.geometry.repeat(x), self.weight, self.bias)
        y = self._run_quantized(x, choice, grouped)
        if self.gradient_bits is None or not self.training:
            return y
        return quantize_gradient(y, self.gradient_bits)

    def _run_quantized(self, x: Tensor, choice: Tensor | None, grouped: bool) -> Tensor:
        if grouped and (len(self.precisions) > 1 or tracer() is None):
            return self._run_groups(x, choice)
        scale = self.norm_scale(x)
        self.prepare(x, scale)
        (weight,) = self.quantized_weights(scale)
        x = self.geometry.repeat(self.quantized_input(x))
        return self.geometry.forward(x, weight, self.bias)

    # Group sizes differ from batch to batch: compiled, each new one would be compiled anew.
    @torch.compiler.disable
    def _run_groups(self, x: Tensor, choice: Tensor | None) -> Tensor:
        if not x.is_floating_point():
            raise UserError(f"{type(self).__name__} takes floating-point images, not {x.dtype}")
        choice, groups, drawn_widths = self._routing(x, choice)
        scale = self.norm_scale(x)
        self.prepare(x, scale)
        weights, gain = self._weights_and_gain(scale)
        bias = self.bias
        if self.affine is not None:
            bias = self.affine.shift if bias is None else self.affine.shift + bias
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weights = x.to(dtype), tuple(w.to(dtype) for w in weights)
            bias = None if bias is None else bias.to(dtype)
        return routed(x, choice, weights, bias, self.pass_of(groups, drawn_widths), gain)

    def pass_of(self, groups: WidthGroups, drawn_widths: WidthGroups | None = None) -> Pass:
        """A pass of images that are in these groups."""
        inputs = InputCodes(self.input_quantizer, self._input_index)
        return Pass(groups, drawn_widths, self.geometry, inputs)

    def _weights_and_gain(
        self, norm_scale: Tensor | None
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """The weight at every precision, and the gain ``[K, O]`` of each.

        In evaluation computed once, until what it is made of changes (what may go unseen on a GPU:
        :class:`~dqnet.layers.weight_cache.WeightCache`); then weights contain their gain.
        """
        affine = self.affine
        # A CUDA graph must quantize for itself, or weights that are loaded later do not reach it.
        if self.training or torch.is_grad_enabled() or captured(self.weight):
            self._weights.clear()
            weights = self.quantized_weights(norm_scale)
            return weights, None if affine is None else affine.gains(weights)

        def compute() -> tuple[Tensor, ...]:
            weights = self.quantized_weights(norm_scale)
            return weights if affine is None else affine.scale(weights)

        of_affine = () if affine is None else (affine.gain,)  # the shift is not part of it
        of_norm = () if norm_scale is None else (norm_scale,)
        quantizer = self.weight_quantizer
        of_quantizer = (*quantizer.parameters(), *quantizer.buffers())
        sources = (self.weight, *of_quantizer, *of_affine, *of_norm)
        return self._weights.get(sources, compute), None

    def _routing(self, x: Tensor, choice: Tensor | None) -> Column:
        count = len(self.precisions)
        if count == 1:
            return Column(None, WidthGroups((len(x),)))
        if choice is None:
            if self.router is None or self.column is None:
                raise UserError(f"a layer with widths {self.widths} needs a choice [N, {count}]")
            return self.router.column(self.column, len(x))
        refuse_recording(x)
        check_one_hot(choice, (len(x), count))
        if not choice.is_floating_point():
            choice = choice.to(x.dtype)
        return Column(choice, WidthGroups.of(choice))


def quantized_layers(model: nn.Module) -> dict[str, QuantLayer]:
    """The quantized layers of a model by name: by that in the float network if it is converted."""
    return {
        name.removeprefix("backbone."): module
        for name, module in model.named_modules()
        if isinstance(module, QuantLayer)
    }
