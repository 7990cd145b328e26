"""What the integer graph computes, in NumPy: the definition of bit-exact.

Codes are multiplied and added in integers. What is multiplied by a scale and rounded to a code is
rounded half to even, after float32 arithmetic in the order that QuantizeLinear, DequantizeLinear
and QLinearConv of ONNX have; all else is computed in float64 and rounded to float32.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from dqnet.export import nodes as n

Values = dict[str, np.ndarray]


def interpret(graph: n.Graph, images: np.ndarray, routing: np.ndarray | None = None) -> Values:
    """Every value of a network: codes as uint8, numbers as float32; λ is 0.

    Args:
        graph: the network.
        images: float32 ``[N, C, H, W]``.
        routing: one-hot ``[N, L, K]`` in the controller's place.
    """
    values: Values = {graph.image: images.astype(np.float32)}
    for node in graph.nodes:
        if isinstance(node.operation, n.Choose) and routing is not None:
            values[node.output] = routing.astype(np.float32)
        elif isinstance(node.operation, n.Routed):
            _routed(graph, node, values)
        else:
            _run(graph, node, values)
    return values


def _run(graph: n.Graph, node: n.Node, values: Values) -> None:
    inputs = [values[name] for name in node.inputs]
    grids = [graph.grids.get(name) for name in node.inputs]
    own = graph.grids.get(node.output)
    if isinstance(node.operation, n.Conv) and grids[0] is not None:
        result = _conv_of_codes(node.operation, inputs[0], grids[0], own)
    elif isinstance(node.operation, n.MOVES) and own is not None and own == grids[0]:
        result = _COMPUTE[type(node.operation)](node.operation, *inputs, zero=own.zero_point)
    else:
        numbers = [_numbers(x, grid) for x, grid in zip(inputs, grids, strict=True)]
        result = _COMPUTE[type(node.operation)](node.operation, *numbers)
        result = result.astype(np.float32) if own is None else quantize(result, own)
    values[node.output] = result


def _routed(graph: n.Graph, node: n.Node, values: Values) -> None:
    """Image by image, for an image's precision decides which nodes are run."""
    routing = values[graph.routing]
    results = []
    for i in range(len(routing)):
        own = {name: value[i : i + 1] for name, value in values.items()}
        k = int(routing[i, node.operation.column].argmax())
        for inner in node.operation.choices[k]:
            _run(graph, inner, own)
        results.append(own[node.output])
    values[node.output] = np.concatenate(results)


# From numbers to codes and back


def quantize(x: np.ndarray, grid: n.Grid) -> np.ndarray:
    """round(x / scale) + zero point, in float32, as QuantizeLinear computes."""
    codes = np.rint(x.astype(np.float32) / np.float32(grid.scale)) + grid.zero_point
    return np.clip(codes, grid.low, grid.high).astype(np.uint8)


def _numbers(x: np.ndarray, grid: n.Grid | None) -> np.ndarray:
    """(code − zero point) · scale, in float32, as DequantizeLinear computes."""
    if grid is None:
        return x.astype(np.float64)
    whole = x.astype(np.float32) - np.float32(grid.zero_point)
    return (whole * np.float32(grid.scale)).astype(np.float64)


def _conv_of_codes(conv: n.Conv, x: np.ndarray, grid: n.Grid, own: n.Grid | None) -> np.ndarray:
    whole = x.astype(np.float64) - grid.zero_point
    # Sums of products of 16-bit integers are exact in float64, and its products are BLAS's.
    sums = _product(conv, whole, conv.weight.codes.astype(np.float64))
    channels = (-1, *[1] * (sums.ndim - 2))
    scale = np.float32(grid.scale) * conv.weight.scale.astype(np.float32)
    if conv.bias_codes is None:
        exact = sums * (grid.scale * conv.weight.scale).reshape(channels)
        result = exact + conv.bias.reshape(channels)
        return result.astype(np.float32) if own is None else quantize(result, own)
    sums = (sums + conv.bias_codes.reshape(channels)).astype(np.int64).astype(np.float32)
    if own is None:
        return sums * scale.reshape(channels)
    scale = scale / np.float32(own.scale)
    codes = np.rint(sums * scale.reshape(channels)) + own.zero_point
    return np.clip(codes, own.low, own.high).astype(np.uint8)


# What each operation computes


def _product(conv: n.Conv, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """A convolution or a fully connected layer without its bias, float64."""
    if weight.ndim == 2:
        return x @ weight.T
    windows = _windows(x, weight.shape[2:], conv.strides, conv.pads, conv.dilations)
    images, _, height, width = windows.shape[:4]
    groups = conv.groups
    # [N, G, C/G, H, W, kh, kw] with [G, O/G, C/G, kh, kw]
    windows = windows.reshape(images, groups, -1, *windows.shape[2:])
    kernel = weight.reshape(groups, -1, *weight.shape[1:])
    rows = windows.transpose(1, 0, 3, 4, 2, 5, 6).reshape(groups, images * height * width, -1)
    sums = rows @ kernel.reshape(groups, kernel.shape[1], -1).transpose(0, 2, 1)
    sums = sums.reshape(groups, images, height, width, -1).transpose(1, 0, 4, 2, 3)
    return sums.reshape(images, -1, height, width)


def _windows(
    x: np.ndarray, kernel: tuple[int, ...], strides: tuple[int, ...], pads: tuple[int, ...],
    dilations: tuple[int, ...] = (1, 1), outside: float = 0.0,
) -> np.ndarray:  # fmt: skip
    """``[N, C, H', W', kh, kw]``: what each output of a window operation reads."""
    top, left, bottom, right = pads
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=outside)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    windows = sliding_window_view(x, reach, axis=(2, 3))
    return windows[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]


def _conv(conv: n.Conv, x: np.ndarray) -> np.ndarray:
    result = _product(conv, x, conv.weight.astype(np.float64))
    return result + conv.bias.reshape(-1, *[1] * (result.ndim - 2))


def _affine(own: n.Affine, x: np.ndarray) -> np.ndarray:
    shape = (-1, *[1] * (x.ndim - 2))
    return x * own.scale.reshape(shape) + own.shift.reshape(shape)


def _clip(own: n.Clip, x: np.ndarray) -> np.ndarray:
    shape = (-1, *[1] * (x.ndim - 2))
    low, high = (np.reshape(end, shape) if np.ndim(end) else end for end in (own.low, own.high))
    return np.clip(x, low, high)


def _pool(own: n.Pool, x: np.ndarray) -> np.ndarray:
    outside = -np.inf if own.kind == "max" else 0.0
    windows = _windows(x, own.kernel, own.strides, own.pads, outside=outside)
    return windows.max((4, 5)) if own.kind == "max" else windows.mean((4, 5))


def _slice(own: n.Slice, x: np.ndarray, zero: int = 0) -> np.ndarray:
    return x[(slice(None), *(slice(*part) for part in own.parts))]


def _pad(own: n.Pad, x: np.ndarray, zero: int = 0) -> np.ndarray:
    pairs = [own.margins[i : i + 2] for i in range(0, len(own.margins), 2)][::-1]
    widths = [(0, 0)] * (x.ndim - len(pairs)) + pairs
    return np.pad(x, widths, constant_values=zero)


def _scores(own: n.Controller, x: np.ndarray) -> np.ndarray:
    flat = x.reshape(*x.shape[:2], -1)
    features = flat.mean(2)
    if own.spread:
        variance = np.maximum((flat**2).mean(2) - features**2, 0)
        features = np.concatenate((features, np.sqrt(variance + 1e-6)), 1)
    hidden = (features * own.scale + own.shift) @ own.first[0].T + own.first[1]
    hidden = np.maximum(hidden, 0) if own.relu else hidden
    scores = hidden @ own.second[0].T + own.second[1]
    return scores.reshape(-1, *own.offset.shape) + own.offset


_COMPUTE: dict[type, Callable[..., np.ndarray]] = {
    n.Conv: _conv,
    n.Identity: lambda own, x: x,
    n.Affine: _affine,
    n.Clip: _clip,
    n.Add: lambda own, a, b: a + b,
    n.Concat: lambda own, *parts: np.concatenate(parts, 1),
    n.Pool: _pool,
    n.Mean: lambda own, x: x.mean((2, 3), keepdims=own.keep),
    n.Flatten: lambda own, x, zero=0: x.reshape(len(x), -1),
    n.Slice: _slice,
    n.Pad: _pad,
    n.Controller: _scores,
    n.Choose: lambda own, scores: np.eye(scores.shape[-1])[scores.argmax(-1)],
}
