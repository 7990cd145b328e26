"""The integer graph: what exported networks are made of, before it is written for any runtime.

A value is a tensor by name. It is either float32, or uint8 codes on a :class:`Grid`, in which case
code c stands for the number (c − zero point) · scale. An operation computes with the numbers that
its inputs stand for, and if its output has a grid, what it computes is rounded to the nearest code,
half to even. So :class:`Identity` is quantization, dequantization or requantization, depending on
what it reads and writes. :mod:`dqnet.export.interpret` is this definition as a program.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np


@dataclass(frozen=True)
class Grid:
    """Evenly spaced numbers (code − zero point) · scale.

    Attributes:
        scale: above 0, a float32 number.
        zero_point: the code of zero.
        low, high: the codes that are used, 0 ≤ low ≤ high ≤ 255.
    """

    scale: float
    zero_point: int
    low: int
    high: int

    def code_of(self, number: float) -> int:
        """The nearest code to a number, infinities included."""
        exact = np.float64(number) / self.scale + self.zero_point
        return int(np.clip(np.rint(exact), self.low, self.high))


@dataclass(frozen=True, eq=False)
class Weight:
    """A weight, ``codes · scale``.

    Attributes:
        codes: int16 ``[O, ...]``, of which each channel's span at most 255; or numbers of a small
            float, float64.
        scale: float64 ``[O]``, at least 0; where codes are int8, of either sign.
        bits: what the quantizer used; an export may store them in more.
        small_float: ``e4m3`` or ``e5m2``; ``None`` of integers.
    """

    codes: np.ndarray
    scale: np.ndarray
    bits: int
    small_float: str | None = None


@dataclass(frozen=True, eq=False)
class Conv:
    """A convolution or, on ``[N, C]``, a fully connected layer.

    Attributes:
        weight: codes; float32 ``[O, ...]`` of a layer in full precision, whose input is float32.
        bias: float64 ``[O]``.
        bias_codes: int64 ``[O]`` in units of (scale of the input) · (scale of the weight), where
            integers are added; it then stands for the bias.
        strides, dilations: of the image axes; empty for a fully connected layer.
        pads: top, left, bottom, right.
        groups: of channels.
    """

    weight: Weight | np.ndarray
    bias: np.ndarray
    bias_codes: np.ndarray | None = None
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    groups: int = 1


@dataclass(frozen=True)
class Identity:
    """The same numbers, on another grid or none."""


@dataclass(frozen=True, eq=False)
class Affine:
    """``x · scale + shift`` of each channel, float64 ``[C]``: a norm that no layer contains."""

    scale: np.ndarray
    shift: np.ndarray


@dataclass(frozen=True, eq=False)
class Clip:
    """``min(max(x, low), high)``; numbers, or float64 ``[C]``."""

    low: float | np.ndarray
    high: float | np.ndarray


@dataclass(frozen=True)
class Add:
    """The sum of two."""


@dataclass(frozen=True)
class Concat:
    """Channels one after the other."""


@dataclass(frozen=True)
class Pool:
    """The largest, or the mean, of each window; pads count as zeros in a mean.

    Attributes:
        kind: ``max`` or ``mean``.
        kernel, strides: of the image axes.
        pads: as of :class:`Conv`.
        channels: of the image.
    """

    kind: str
    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    channels: int


@dataclass(frozen=True)
class Mean:
    """The mean over the image; ``keep``: as ``[N, C, 1, 1]``."""

    keep: bool


@dataclass(frozen=True)
class Flatten:
    """``[N, ...]`` to ``[N, M]``."""


@dataclass(frozen=True)
class Slice:
    """Parts of the channels, or of these and the two image axes: (start, stop, step) of each."""

    parts: tuple[tuple[int | None, int | None, int | None], ...]


@dataclass(frozen=True)
class Pad:
    """Zeros around: left, right, top, bottom of the image, then before and behind the channels."""

    margins: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Controller:
    """Features ``[N, C, H, W]`` to scores ``[N, L, K]``; see :class:`dqnet.controller.Controller`.

    Attributes:
        spread: whether standard deviations stand behind the means.
        scale, shift: of the norm of these features.
        first, second: weight ``[O, I]`` and bias ``[O]`` of the two fully connected layers.
        relu: whether one stands between them.
        offset: ``[L, K]``, added to the scores: what precisions cost at the budget of the export,
            with the sign changed; and a large negative number for those that a layer does not have.
        prices: ``[L, K]``, what λ, a further price, multiplies before it is taken from the scores.
    """

    spread: bool
    scale: np.ndarray
    shift: np.ndarray
    first: tuple[np.ndarray, np.ndarray]
    second: tuple[np.ndarray, np.ndarray]
    relu: bool
    offset: np.ndarray
    prices: np.ndarray


@dataclass(frozen=True)
class Choose:
    """Scores to the one-hot routing of the largest, the first of equal ones."""


@dataclass(frozen=True, eq=False)
class Routed:
    """A layer at the precision that the routing has for the image.

    Attributes:
        column: which of the routing's layers.
        choices: k of the network's K precisions → the nodes that are then run, which read the
            node's first input and write its output.
    """

    column: int
    choices: dict[int, tuple[Node, ...]]


Operation: TypeAlias = (
    Conv | Identity | Affine | Clip | Add | Concat | Pool | Mean | Flatten | Slice | Pad
    | Controller | Choose | Routed
)  # fmt: skip
#: operations that move or drop codes of one grid and compute none
MOVES = (Flatten, Slice, Pad)


@dataclass(frozen=True, eq=False)
class Node:
    """An operation and the names of the values that it reads and writes."""

    operation: Operation
    inputs: tuple[str, ...]
    output: str


@dataclass(eq=False)
class Graph:
    """A network.

    Attributes:
        image_shape: ``(C, H, W)``.
        nodes: in an order in which they can be run.
        grids: of the values that are codes.
        image, logits: names of the float32 values that it reads and returns.
        routing: name of the one-hot routing ``[N, L, K]``; ``None`` in a static network.
        choices: its shape, ``(L, K)``.
    """

    image_shape: tuple[int, int, int]
    nodes: list[Node] = field(default_factory=list)
    grids: dict[str, Grid] = field(default_factory=dict)
    image: str = "images"
    logits: str = "logits"
    routing: str | None = None
    choices: tuple[int, int] = (0, 0)

    def all_nodes(self) -> list[Node]:
        """Those within routed layers, too."""
        found = []
        for node in self.nodes:
            found.append(node)
            if isinstance(node.operation, Routed):
                found += [inner for own in node.operation.choices.values() for inner in own]
        return found

    def weights(self) -> list[Weight]:
        """Those of quantized layers."""
        convs = [n.operation for n in self.all_nodes() if isinstance(n.operation, Conv)]
        return [own.weight for own in convs if isinstance(own.weight, Weight)]

    def readers(self, value: str) -> list[Node]:
        """Nodes that read a value, those of routed layers instead of these."""
        nodes = (n for n in self.all_nodes() if not isinstance(n.operation, Routed))
        return [node for node in nodes if value in node.inputs]
