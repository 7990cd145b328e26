"""What every method of quantization offers to a layer, and the register of their names."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dqnet.errors import UserError
from dqnet.formats import MAX_BITS, MIN_BITS, Format
from dqnet.quantizers.codes import Codes
from dqnet.recording import captured, tracer

#: what a quantizer may be of
TENSORS = ("weight", "input")


class Quantizer(nn.Module):
    """Quantizes one tensor, a layer's weight or its input, to each of several formats.

    :meth:`forward` is all that a method must write. A subclass may name itself in its class
    statement, ``class LSQ(Quantizer, name="lsq")``; a file in this folder is found by that name
    with no further registration. A method whose two tensors differ is two classes,
    ``name="dorefa", of="weight"`` and ``name="dorefa", of="input"``; one that says nothing about
    weights names the method that goes with it, ``weights="dorefa"``.

    Args:
        formats: F different formats; an index k into them is what :meth:`forward` takes.
        signed: whether the tensor can be negative; ``None``: unknown, taken as not.
        channels: how many output channels a weight has, for a format per channel; ``None``: one
            for the whole tensor.
        options: the method's own.

    Attributes:
        signed: as given, or as :meth:`finish` found it.
    """

    #: method → "weight" and "input" → the class
    registry: ClassVar[dict[str, dict[str, type[Quantizer]]]] = {}
    #: the method whose weights go with these inputs; ``None``: its own
    weights: ClassVar[str | None] = None
    #: whether a weight becomes one on a scale of its own, as DoReFa's in [-1, 1]
    rescales: ClassVar[bool] = False
    #: the kind of format that it writes ...
    writes: ClassVar[type[Format]] = Format
    #: ... and of how many bits
    storage: ClassVar[range] = range(MIN_BITS, MAX_BITS + 1)
    #: whether the float weight stays as it was observed, and the quantizer's parameters are trained
    keeps_weight: ClassVar[bool] = False
    #: names of parameters that are regularised by a weight decay of their own
    decayed: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(
        cls,
        name: str | None = None,
        of: str | None = None,
        weights: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init_subclass__(**kwargs)
        if weights is not None:
            cls.weights = weights
        if name is not None:
            classes = Quantizer.registry.setdefault(name, {})
            classes.update(dict.fromkeys(TENSORS if of is None else (of,), cls))

    def __init__(
        self,
        formats: Sequence[Format],
        *,
        signed: bool | None = None,
        channels: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if options:  # what a subclass did not take
            raise TypeError(f"unexpected option {next(iter(options))!r}")
        self.formats = tuple(formats)
        self._check_formats()
        self.channels = channels
        # Buffers, so that a checkpoint says which form it was trained in; of floating point,
        # because moving averages are taken of buffers, too. The plain values beside them spare a
        # device read per pass.
        self.register_buffer("signed_form", torch.tensor(float(bool(signed))))
        self.signed = bool(signed)
        self._ready = not self.needs_data
        if self.needs_data:
            self.register_buffer("initialized", torch.tensor(0.0))
        self._copies: weakref.WeakSet[Quantizer] = weakref.WeakSet()

    def forward(self, x: Tensor, k: int) -> Tensor:
        """The tensor in format k.

        Args:
            x: the weight, or a batch of inputs ``[N, ...]``.
            k: index into ``formats``.

        Returns:
            A tensor of the shape of ``x``, differentiable in it and in the parameters.
        """
        raise NotImplementedError

    def encode(self, x: Tensor, k: int) -> Codes:
        """The tensor in format k, as integer codes.

        Raises:
            UserError: if the method has none.
        """
        raise UserError(f"{type(self).__name__} does not say what its integer codes are")

    def _check_formats(self) -> None:
        """Raises UserError for a format that the method does not write."""
        least, most = self.storage[0], self.storage[-1]
        for own in self.formats:
            if type(own) is not self.writes:
                raise UserError(f"{type(self).__name__} writes {self.writes.kind}, not {own}")
            if own.bits not in self.storage:
                raise UserError(
                    f"{type(self).__name__} has at least {least} bits and at most {most}, "
                    f"not {own.bits}"
                )

    # What depends on data

    def observe(self, x: Tensor) -> None:
        """Sees a batch of inputs ``[N, ...]`` of all processes, or the weight; any number of times.

        A quantizer that has parameters to set from data overrides this and :meth:`finish`.
        """

    @classmethod
    def pool(cls, quantizers: Sequence[Quantizer]) -> None:
        """In a calibration, before :meth:`finish`: shares what a network's quantizers have seen.

        A class whose quantizers have something in common overrides this.

        Args:
            quantizers: all of the network that are of this class.
        """

    def finish(self) -> None:
        """Sets parameters from what was observed, and forgets it."""

    def follow(self, x: Tensor) -> None:
        """In training, sees the weight, or the batch of inputs, before every forward pass.

        A quantizer whose ranges follow what is trained overrides this, or one that keeps weights
        within bounds, and may change ``x`` in place.
        """

    @property
    def needs_data(self) -> bool:
        """Whether something has to be observed before the first forward pass."""
        return type(self).observe is not Quantizer.observe

    @property
    def ready(self) -> bool:
        """Whether nothing is left to be set from data.

        Raises:
            UserError: if it would be set in a recording, and again whenever that is run.
        """
        if self._ready:  # once true it is not read from the device again
            return True
        if tracer() is not None or captured(self.initialized):
            raise UserError(
                "quantizers are set from the first batch, which cannot be recorded: run a batch, "
                "or dqnet.calibrate, first"
            )
        self._ready = bool(self.initialized > 0)  # an average of flags is not 1
        return self._ready

    def prepare(self, x: Tensor) -> None:
        """Sets itself from the first batch, or from the weight, unless it is ready.

        This is what happens without a calibration. A batch without a finite value, or without
        images, is passed over.
        """
        if not self.ready and x.isfinite().any():
            self.observe(x.detach())
            self.complete()

    @torch.no_grad()
    def complete(self) -> None:
        """Calls :meth:`finish`, after which the quantizer is ready.

        Copies that were made before, such as a moving average, start from the same values. They
        stay their own: one that sees data of its own is set from those.
        """
        self.finish()
        if self.needs_data:
            self.initialized.fill_(1)
            self._ready = True
            own = self.state_dict()
            for other in self._copies:
                if not other.ready:
                    for name, value in other.state_dict().items():
                        value.copy_(own[name] if name != "initialized" else value)
            self._copies.clear()

    # Fast path

    def all_formats(self, x: Tensor) -> tuple[Tensor, ...]:
        """The tensor in every format; a method that can share work between them overrides this."""
        return tuple(self(x, k) for k in range(len(self.formats)))

    def codes_into(self, x: Tensor, k: int, out: Tensor) -> Tensor | float:
        """Writes codes to ``out`` and returns their scale: together :meth:`forward`.

        A convolution of codes with a weight that was multiplied by the scale has the same result,
        and spares a pass over memory. A method that is to be fast on inputs overrides this and
        :meth:`input_gradients`.

        Args:
            x: any shape.
            k: index into ``formats``.
            out: where the codes go, of the shape of ``x``; it may be ``x`` itself.

        Returns:
            A number or a scalar tensor, so that the quantized input is ``scale * out``.
        """
        with torch.no_grad():
            out.copy_(self(x, k))
        return 1.0

    def input_gradients(self, grad: Tensor, x: Tensor, k: int, out: Tensor) -> list[Tensor]:
        """The gradients that :meth:`forward` passes on.

        Args:
            grad: the gradient to its result, which may be overwritten.
            x: its input.
            k: index into ``formats``.
            out: where the gradient to ``x`` goes; it may be ``grad`` itself.

        Returns:
            One gradient for each of ``parameters()``.
        """
        parameters = list(self.parameters())
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            wanted = [x, *(p for p in parameters if p.requires_grad)]
            # A parameter of one format is not used in the others: its gradient is zero there.
            grads = torch.autograd.grad(self(x, k), wanted, grad, materialize_grads=True)
        out.copy_(grads[0])
        rest = iter(grads[1:])
        return [next(rest) if p.requires_grad else torch.zeros_like(p) for p in parameters]

    # State

    def extra_repr(self) -> str:
        return f"formats=({', '.join(map(str, self.formats))}), signed={self.signed}"

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.signed = bool(self.signed_form > 0.5)
        self._ready = not self.needs_data or bool(self.initialized > 0)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_copies": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._copies = weakref.WeakSet()

    def __deepcopy__(self, memo: dict[int, Any]) -> Quantizer:
        other = self.__class__.__new__(self.__class__)
        memo[id(self)] = other
        other.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        if not self._ready:
            self._copies.add(other)
        return other
