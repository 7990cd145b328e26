"""What every number format offers to a layer, and the register of their names."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dqnet.errors import UserError

MIN_WIDTH, MAX_WIDTH = 1, 16


def check_widths(widths: Sequence[int]) -> tuple[int, ...]:
    """Returns ``widths`` as a tuple if they are ascending bit-widths from 1 to 16.

    Raises:
        UserError: if they are empty, not integers, out of range, unsorted or repeated.
    """
    widths = getattr(widths, "tolist", lambda: widths)()  # of NumPy's arrays
    if not isinstance(widths, Sequence) or isinstance(widths, str):
        raise UserError(f"widths {widths!r} is not a list of bit-widths, e.g. (2, 3, 4)")
    given = [getattr(width, "item", lambda width=width: width)() for width in widths]
    if not given:
        raise UserError("widths is empty; give at least one bit-width, e.g. (2, 3, 4)")
    for width in given:
        if isinstance(width, bool) or not isinstance(width, int):
            raise UserError(f"width {width!r} is not an integer; widths are bits, e.g. (2, 3, 4)")
        if width == 32:
            raise UserError(
                "width 32 is full precision, which is the unconverted model (quant=none); "
                f"widths go from {MIN_WIDTH} to {MAX_WIDTH}"
            )
        if not MIN_WIDTH <= width <= MAX_WIDTH:
            raise UserError(f"width {width} is out of range; valid: {MIN_WIDTH} to {MAX_WIDTH}")
    if given != sorted(set(given)):
        right = tuple(sorted(set(given)))
        raise UserError(
            f"widths {tuple(given)} must be ascending and without repeats, e.g. {right}"
        )
    return tuple(given)


class Quantizer(nn.Module):
    """The number format of one layer: of its weight and of its input, at each of K widths.

    A subclass names itself in its class statement, ``class DoReFa(Quantizer, name="dorefa")``;
    a file in this folder is found by that name with no further registration.

    Args:
        widths: ascending bit-widths, each from 1 to 16.
        signed: whether the layer's input can be negative.
    """

    registry: ClassVar[dict[str, type[Quantizer]]] = {}
    #: names of parameters that are regularised by a weight decay of their own
    decayed: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, name: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if name is not None:
            Quantizer.registry[name] = cls

    def __init__(self, widths: Sequence[int], signed: bool = False) -> None:
        super().__init__()
        self.widths = check_widths(widths)
        # A buffer, so that a checkpoint says which form it was trained in; and a plain value beside
        # it, to spare a device read per pass.
        self.register_buffer("signed_form", torch.tensor(bool(signed)))
        self.signed = bool(signed)

    def prepare(self, weight: Tensor, x: Tensor) -> None:
        """Sets what depends on data, once, before the first forward pass. Nothing by default.

        Args:
            weight: the layer's weight.
            x: the layer's first input, ``[N, ...]``, the whole batch whatever its routing.
        """

    def quantize_weight(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The weight at every width: K tensors of its shape, differentiable."""
        raise NotImplementedError

    def quantize_input(self, x: Tensor, width: int) -> Tensor:
        """The input at one of the widths: a tensor of the shape of ``x``, differentiable."""
        raise NotImplementedError

    def codes_into(self, x: Tensor, width: int, out: Tensor) -> Tensor | float:
        """Writes codes to ``out`` and returns their scale: together :meth:`quantize_input`.

        A convolution of codes with a weight that was multiplied by the scale has the same result,
        and spares a pass over memory. A quantizer that is to be fast overrides this and
        :meth:`input_gradients`.

        Args:
            x: any shape.
            width: one of the widths.
            out: where the codes go, of the shape of ``x``; it may be ``x`` itself.

        Returns:
            A number or a scalar tensor, so that the quantized input is ``scale * out``.
        """
        with torch.no_grad():
            out.copy_(self.quantize_input(x, width))
        return 1.0

    def input_gradients(self, grad: Tensor, x: Tensor, width: int, out: Tensor) -> list[Tensor]:
        """The gradients that :meth:`quantize_input` passes on.

        Args:
            grad: the gradient to its result, which may be overwritten.
            x: its input.
            width: one of the widths.
            out: where the gradient to ``x`` goes; it may be ``grad`` itself.

        Returns:
            One gradient for each of :meth:`input_parameters`.
        """
        parameters = self.input_parameters()
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            wanted = [x, *(p for p in parameters if p.requires_grad)]
            # A parameter of one width is not used at the others: its gradient is zero there.
            grads = torch.autograd.grad(
                self.quantize_input(x, width), wanted, grad, materialize_grads=True
            )
        out.copy_(grads[0])
        rest = iter(grads[1:])
        return [next(rest) if p.requires_grad else torch.zeros_like(p) for p in parameters]

    def input_parameters(self) -> list[nn.Parameter]:
        """The parameters that :meth:`quantize_input` depends on."""
        return []

    def with_input_parameters(self, parameters: Sequence[Tensor]) -> Quantizer:
        """Itself, or if these are not its :meth:`input_parameters` a copy that has them instead.

        In the backward pass they may be others than in the forward pass, under
        ``torch.func.functional_call`` for one.
        """
        own = self.input_parameters()
        if all(a is b for a, b in zip(own, parameters, strict=True)):
            return self
        tensors = {id(t): t for t in (*self.parameters(), *self.buffers())}  # are not copied
        return copy.deepcopy(self, tensors | dict(zip(map(id, own), parameters, strict=True)))

    def extra_repr(self) -> str:
        return f"widths={self.widths}, signed={self.signed}"

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.signed = bool(self.signed_form)
