"""Winograd's convolutions F(m x m, 3 x 3): fewer multiplications for a 3 x 3 convolution.

Lavin, Gray 2016, *Fast Algorithms for Convolutional Neural Networks*,
https://arxiv.org/abs/1509.09308, section 4. A tile of m x m outputs needs d, (m + 2) x (m + 2)
inputs, and is

    Y = Aᵀ [(G w Gᵀ) ⊙ (Bᵀ d B)] A, the products being summed over input channels,

which is (m + 2)² multiplications instead of 9 m²: 16 instead of 36 for m = 2, 36 instead of 144 for
m = 4. A and B are of whole numbers; G is too, once multiplied by 2 (m = 2) or 24 (m = 4). One of
the (m + 2)² positions of the transformed tile is a tap.

A transform is computed as vec(Bᵀ d B) = (Bᵀ ⊗ Bᵀ) vec(d), one product of matrices for all tiles.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dqnet.errors import UserError, unknown_name

KERNEL = 3
SCALES = ("tap", "layer")
#: of transformed numbers
LEAST_BITS, MOST_BITS = 2, 16


class Algorithm(NamedTuple):
    """The matrices of F(m, 3).

    Attributes:
        input: Bᵀ, ``[m + 2, m + 2]``.
        weight: G times ``denominator``, ``[m + 2, 3]``.
        output: Aᵀ, ``[m, m + 2]``.
        denominator: of G.
        input_additions, output_additions: of Bᵀ and Aᵀ times one vector, sums that occur twice
            being computed once and multiplications by constants being shifts (5 = 4 + 1).
    """

    input: tuple[tuple[int, ...], ...]
    weight: tuple[tuple[int, ...], ...]
    output: tuple[tuple[int, ...], ...]
    denominator: int
    input_additions: int
    output_additions: int


ALGORITHMS = {
    2: Algorithm(
        input=((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
        weight=((2, 0, 0), (1, 1, 1), (1, -1, 1), (0, 0, 2)),
        output=((1, 1, 1, 0), (0, 1, -1, -1)),
        denominator=2,
        input_additions=4,
        output_additions=4,
    ),
    4: Algorithm(
        input=(
            (4, 0, -5, 0, 1, 0),
            (0, -4, -4, 1, 1, 0),
            (0, 4, -4, -1, 1, 0),
            (0, -2, -1, 2, 1, 0),
            (0, 2, -1, -2, 1, 0),
            (0, 4, 0, -5, 0, 1),
        ),
        weight=((6, 0, 0), (-4, -4, -4), (-4, 4, -4), (1, 2, 4), (1, -2, 4), (0, 0, 24)),
        output=(
            (1, 1, 1, 1, 1, 0),
            (0, 1, -1, 2, -2, 0),
            (0, 1, 1, 4, 4, 0),
            (0, 1, -1, 8, -8, 1),
        ),
        denominator=24,
        input_additions=12,
        output_additions=10,
    ),
}


@dataclass(frozen=True)
class Winograd:
    """How a layer multiplies that is a quantized Winograd convolution.

    Attributes:
        tile: m, 2 or 4.
        scales: of transformed weights and of transformed inputs: one for each ``tap``, or one for
            the ``layer``.
        bits: of both, 2 to 16; the layer's precision is of what they are transformed from.
        learned: whether training changes the scales that were calibrated.

    Raises:
        UserError: for another value.
    """

    tile: int = 4
    scales: str = "tap"
    bits: int = 8
    learned: bool = True

    def __post_init__(self) -> None:
        if self.tile not in ALGORITHMS:
            raise UserError(f"winograd tile {self.tile!r} must be 2 or 4: F(2x2, 3x3), F(4x4, 3x3)")
        if self.scales not in SCALES:
            raise unknown_name("winograd scales", str(self.scales), SCALES)
        if type(self.bits) is not int or not LEAST_BITS <= self.bits <= MOST_BITS:
            raise UserError(
                f"winograd bits {self.bits!r} must be an integer from {LEAST_BITS} to {MOST_BITS}"
            )
        if type(self.learned) is not bool:
            raise UserError(f"winograd learned {self.learned!r} must be true or false")

    @property
    def taps(self) -> int:
        """(m + 2)²."""
        return (self.tile + KERNEL - 1) ** 2

    def tiles(self, height: int, width: int) -> int:
        """How many tiles make an output of this size, those that reach beyond it included."""
        return -(-height // self.tile) * -(-width // self.tile)

    def additions(self, channels: int, outputs: int) -> int:
        """Additions of the two transforms of one tile.

        Args:
            channels: of the input.
            outputs: channels of the output.
        """
        own, size = ALGORITHMS[self.tile], self.tile + KERNEL - 1
        inputs = own.input_additions * 2 * size * channels
        return inputs + own.output_additions * (size + self.tile) * outputs

    def to_json(self) -> dict[str, Any]:
        """As a plan's file has it."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Any) -> Winograd:
        """Reads what :meth:`to_json` made.

        Raises:
            UserError: for anything else.
        """
        if not isinstance(content, dict):
            raise UserError(f"winograd {content!r} must be a table, e.g. {cls().to_json()}")
        for key in content:
            if key not in cls.__dataclass_fields__:
                raise unknown_name("key of winograd", str(key), cls.__dataclass_fields__)
        return cls(**content)

    def __str__(self) -> str:
        return f"F({self.tile}x{self.tile}, {KERNEL}x{KERNEL})"


def why_direct(conv: nn.Conv2d) -> str | None:
    """Why a convolution cannot be one of Winograd's; ``None``: it can."""
    if tuple(conv.kernel_size) != (KERNEL, KERNEL):
        return "{} x {}".format(*conv.kernel_size)
    if tuple(conv.stride) != (1, 1):
        return f"stride {max(conv.stride)}"
    if tuple(conv.dilation) != (1, 1):
        return f"dilation {max(conv.dilation)}"
    return None if conv.groups == 1 else f"{conv.groups} groups"


class Transforms(nn.Module):
    """The three transforms of F(m x m, 3 x 3), and the convolution in full precision.

    Args:
        tile: m, 2 or 4.
    """

    def __init__(self, tile: int) -> None:
        super().__init__()
        self.tile = tile
        for name in ("input", "weight", "output"):
            matrix = torch.tensor(getattr(ALGORITHMS[tile], name), dtype=torch.get_default_dtype())
            # Buffers are where the layer is; they follow from the tile.
            self.register_buffer(f"both_{name}", torch.kron(matrix, matrix), persistent=False)

    def input(self, x: Tensor) -> Tensor:
        """Bᵀ d B of every tile.

        Args:
            x: ``[N, C, H, W]``, margins of the convolution included, H and W at least 3.

        Returns:
            ``[(m + 2)², N · tiles, C]``, tiles in the order of the image; those at the right and
            at the bottom are filled up with zeros.
        """
        tile, size = self.tile, self.tile + KERNEL - 1
        rows, columns = (-(-(n - KERNEL + 1) // tile) for n in x.shape[2:])
        x = F.pad(x, (0, columns * tile + 2 - x.shape[3], 0, rows * tile + 2 - x.shape[2]))
        tiles = x.unfold(2, size, tile).unfold(3, size, tile)  # [N, C, rows, columns, size, size]
        flat = tiles.permute(4, 5, 0, 2, 3, 1).reshape(size**2, -1)
        return (self.both_input.to(x.dtype) @ flat).view(size**2, -1, x.shape[1])

    def weight(self, weight: Tensor) -> Tensor:
        """G w Gᵀ: ``[O, C, 3, 3]`` to ``[(m + 2)², C, O]``.

        Of whole numbers it is exact but for one division.
        """
        flat = weight.permute(2, 3, 1, 0).reshape(KERNEL**2, -1)
        whole = self.both_weight.to(weight.dtype) @ flat
        transformed = whole / ALGORITHMS[self.tile].denominator ** 2
        return transformed.view(len(whole), weight.shape[1], weight.shape[0])

    def output(self, products: Tensor, images: int, height: int, width: int) -> Tensor:
        """Aᵀ M A of every tile.

        Args:
            products: M, ``[(m + 2)², N · tiles, O]``.
            images: N.
            height, width: of the output.

        Returns:
            ``[N, O, height, width]``.
        """
        tile = self.tile
        rows, columns = -(-height // tile), -(-width // tile)
        y = self.both_output.to(products.dtype) @ products.flatten(1)
        y = y.view(tile, tile, images, rows, columns, -1).permute(2, 5, 3, 0, 4, 1)
        return y.reshape(images, -1, rows * tile, columns * tile)[..., :height, :width]

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """A 3 x 3 convolution of stride 1 without margins, in full precision.

        Args:
            x: ``[N, C, H, W]``.
            weight: ``[O, C, 3, 3]``.

        Returns:
            ``[N, O, H − 2, W − 2]``.
        """
        products = self.input(x) @ self.weight(weight)
        return self.output(products, len(x), x.shape[2] - 2, x.shape[3] - 2)
