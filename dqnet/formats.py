"""How numbers are written: values without tensors.

A :class:`Format` is of one number, a :class:`Precision` says which format a layer's weights and its
inputs have. Everything else in the package refers to a layer's precisions by an index k.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from dqnet.errors import UserError

MIN_BITS, MAX_BITS = 1, 16
#: what a number in full precision counts as
FULL_PRECISION_BITS = 32
#: exponent bits of a small float: float32, in which quantizers compute, has 8
MAX_EXPONENT_BITS = 8
#: the one format whose name is not made of its bits
FLOAT16 = "float16"
#: ``w4a8``; what stands behind w and a is a format's name
_PAIR = re.compile(rf"w(?P<weight>{FLOAT16}|[^a]+)a(?P<input>.+)")
_MINIFLOAT = re.compile(r"e(?P<exponent>[0-9]+)m(?P<mantissa>[0-9]+)")
_VALID = (
    f"bits of an integer, {MIN_BITS} to {MAX_BITS}; or a small float such as e4m3, of 1 to "
    f"{MAX_EXPONENT_BITS} exponent bits and at most {MAX_BITS} in all with the sign; or {FLOAT16}"
)


@dataclass(frozen=True)
class Format:
    """The integers of ``bits`` bits; other kinds of numbers are subclasses.

    Attributes:
        bits: storage of one number, from 1 to 16.
    """

    #: what these numbers are called, with an example
    kind: ClassVar[str] = "integers such as 4"

    bits: int

    def __post_init__(self) -> None:
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise UserError(
                f"width {self.bits} is out of range; valid: {MIN_BITS} to {MAX_BITS}"
                + (" (32 is full precision)" if self.bits == FULL_PRECISION_BITS else "")
            )

    @staticmethod
    def parse(text: str) -> Format:
        """A format by its name: ``"4"`` is the 4-bit integer, ``"e4m3"`` an 8-bit float.

        Raises:
            UserError: for a name that no format has.
        """
        if text.isdecimal():
            return Format(int(text))
        split = _MINIFLOAT.fullmatch("e5m10" if text == FLOAT16 else text)
        if split is None:
            raise UserError(f"{text!r} is not a number format; valid: {_VALID}")
        return Minifloat(int(split["exponent"]), int(split["mantissa"]))

    def __str__(self) -> str:
        return str(self.bits)


@dataclass(frozen=True)
class Minifloat(Format):
    """Floating-point numbers of a sign, exponent and mantissa bits: ``"e4m3"`` has 1 + 4 + 3.

    The exponent's bias is 2ᵉ⁻¹ − 1, and there are subnormal numbers. Which codes are infinite or
    not a number follows the published formats. From 5 exponent bits on it is as in IEEE 754: all
    those of the highest exponent (float16; e5m2 of Micikevicius et al. 2022,
    https://arxiv.org/abs/2209.05433). With 4 it is the single highest code of either sign (e4m3 in
    the same paper). With fewer all codes are numbers (e3m2, e2m3 and e2m1 of *OCP Microscaling
    Formats* 1.0, section 5.3).

    Attributes:
        exponent, mantissa: bits of each.
        bits: of both and the sign.
    """

    kind: ClassVar[str] = "small floats such as e4m3"

    bits: int = field(init=False)
    exponent: int
    mantissa: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", 1 + self.exponent + self.mantissa)
        if not (
            1 <= self.exponent <= MAX_EXPONENT_BITS and self.mantissa >= 0 and self.bits <= MAX_BITS
        ):
            raise UserError(f"'{self}' is not a number format; valid: {_VALID}")

    @property
    def least_exponent(self) -> int:
        """That of the smallest normal number and of the subnormal ones."""
        return 2 - 2 ** (self.exponent - 1)

    @property
    def reserved(self) -> int:
        """How many of the highest codes of either sign are not numbers."""
        return 2**self.mantissa if self.exponent >= 5 else int(self.exponent == 4)

    @property
    def largest(self) -> float:
        """The largest number."""
        exponent, mantissa = divmod(2 ** (self.bits - 1) - 1 - self.reserved, 2**self.mantissa)
        return (1 + mantissa / 2**self.mantissa) * 2.0 ** (exponent - 1 + self.least_exponent)

    def __str__(self) -> str:
        name = f"e{self.exponent}m{self.mantissa}"
        return FLOAT16 if name == "e5m10" else name


@dataclass(frozen=True)
class Precision:
    """The formats of a layer's weight and of its input.

    ``str()`` of it is its name, which :meth:`parse` reads: ``"3"``, ``"w4a8"`` or ``"e4m3"``.
    """

    weight: Format
    input: Format

    @classmethod
    def parse(cls, value: int | str | Precision) -> Precision:
        """A precision as a user writes it.

        Args:
            value: ``3`` (or ``"3"``) is 3-bit integers for both, ``"w4a8"`` 4-bit weights and
                8-bit inputs, ``"e4m3"`` small floats for both, ``"w4ae4m3"`` one of each.

        Raises:
            UserError: for anything else.
        """
        if isinstance(value, Precision):
            return value
        value = getattr(value, "item", lambda: value)()  # NumPy's and torch's scalars
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise UserError(
                f"width {value!r} is not an integer; widths are bits, e.g. (2, 3, 4), "
                "or precisions, e.g. 'w4a8'"
            )
        if value in (FULL_PRECISION_BITS, str(FULL_PRECISION_BITS)):
            raise UserError(
                "width 32 is full precision, which is the unconverted model (quant=none); "
                f"widths go from {MIN_BITS} to {MAX_BITS}"
            )
        if isinstance(value, int):
            return cls(Format(value), Format(value))
        pair = _PAIR.fullmatch(value)
        if pair:
            return cls(Format.parse(pair["weight"]), Format.parse(pair["input"]))
        if not value.isdecimal() and value != FLOAT16 and not _MINIFLOAT.fullmatch(value):
            raise UserError(
                f"{value!r} is not a precision; give bits, e.g. 3, or weight and input, e.g. "
                "'w4a8', or a small float, e.g. 'e4m3'"
            )
        return cls(Format.parse(value), Format.parse(value))

    @property
    def bit_product(self) -> int:
        """Weight bits × input bits: the Bit-FLOPs of one multiply-accumulate."""
        return self.weight.bits * self.input.bits

    @property
    def width(self) -> float:
        """√(weight bits · input bits), in bits."""
        return math.sqrt(self.bit_product)

    @property
    def value(self) -> int | str:
        """As a user writes it, the shortest way: ``3``, ``"w4a8"``."""
        return int(str(self)) if str(self).isdecimal() else str(self)

    @property
    def label(self) -> str:
        """For people: ``3 bit``, ``w4a8``, ``e4m3``."""
        return f"{self} bit" if str(self).isdecimal() else str(self)

    def __str__(self) -> str:
        if self.weight == self.input:
            return str(self.weight)
        return f"w{self.weight}a{self.input}"


def parse_precisions(values: Sequence[int | str | Precision]) -> tuple[Precision, ...]:
    """A layer's candidate precisions, from the cheapest to the most expensive.

    Args:
        values: each as :meth:`Precision.parse` takes it. Two of equal cost stay in their order.

    Raises:
        UserError: if there is none, one is not a precision, or they are repeated or not ascending.
    """
    values = getattr(values, "tolist", lambda: values)()  # of NumPy's arrays
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise UserError(f"widths {values!r} is not a list of bit-widths, e.g. (2, 3, 4)")
    if not values:
        raise UserError("widths is empty; give at least one bit-width, e.g. (2, 3, 4)")
    precisions = tuple(Precision.parse(value) for value in values)
    right = ascending(precisions)
    if precisions != right:
        raise UserError(
            f"widths {as_written(precisions)} must be ascending and without repeats, "
            f"e.g. {as_written(right)}"
        )
    return precisions


def ascending(precisions: Iterable[Precision]) -> tuple[Precision, ...]:
    """Without repeats, by rising cost of a multiply-accumulate."""
    return tuple(sorted(dict.fromkeys(precisions), key=lambda p: p.bit_product))


def as_written(precisions: Iterable[Precision]) -> tuple[int | str, ...]:
    """As a user writes them: ``(2, 3)``, ``("w2a4", "w4a4")``."""
    return tuple(p.value for p in precisions)


def distinct(formats: Iterable[Format]) -> tuple[tuple[Format, ...], tuple[int, ...]]:
    """The different formats among those of K precisions, and for each k the index of its own.

    So precisions that have a format in common share what a quantizer keeps for it.
    """
    formats = tuple(formats)
    different = tuple(dict.fromkeys(formats))
    return different, tuple(different.index(own) for own in formats)


def common_precisions(layers: Iterable[Any]) -> tuple[Precision, ...]:
    """All candidates of several layers, ascending; each layer has ``precisions``."""
    return ascending(p for layer in layers for p in layer.precisions)
