"""From the graph of the simulated network to one in which every value is a code.

A layer's result, its activation and the quantization behind it become one operation, which adds
integers and rounds once. The numbers are those of the simulated network: activations and moves
commute with rounding to a grid.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dqnet.errors import UserError
from dqnet.export import nodes as n

#: of int8, and of what biases may grow to in int32
LARGEST_CODE, LARGEST_BIAS = 127, 2.0**30
#: processors without VNNI keep sums of two products in 16 bits, which hold those of codes up to it
SAFE_CODE = 64
REMEDY = "convert with residual=8 (quant.residual=8), or export with form=exact"


def to_integer(graph: n.Graph) -> n.Graph:
    """The graph with a grid for every value but the image, scores, routing and logits.

    Args:
        graph: from :func:`dqnet.export.lower.lower`; left as it is.

    Raises:
        UserError: for a value without a grid; the operation that computes it is named.
    """
    made = replace(graph, nodes=list(graph.nodes), grids=dict(graph.grids))
    _check_operations(made)
    _grids_forward(made)
    while _fuse_one(made):
        pass
    _check_grids(made)
    made.nodes = [_with_integers(node, made) for node in made.nodes]
    return made


def _grids_forward(graph: n.Graph) -> None:
    """What moves, clips or picks codes returns codes of the same grid."""
    for node in graph.nodes:
        grid = graph.grids.get(node.inputs[0])
        if grid is None or node.output in graph.grids:
            continue
        own = node.operation
        if isinstance(own, n.MOVES) or (isinstance(own, n.Pool) and own.kind == "max"):
            graph.grids[node.output] = grid
        elif isinstance(own, n.Clip) and not np.ndim(own.low) and not np.ndim(own.high):
            graph.grids[node.output] = _narrowed(grid, own)


def _narrowed(grid: n.Grid, clip: n.Clip) -> n.Grid:
    low, high = max(grid.low, grid.code_of(clip.low)), min(grid.high, grid.code_of(clip.high))
    return replace(grid, low=low, high=max(low, high))


def _fuse_one(graph: n.Graph) -> bool:
    """Gives a grid to one more value, if there is one that its only reader rounds to a grid."""
    producers = {node.output: node for node in graph.nodes}
    for node in reversed(graph.nodes):
        value = node.inputs[0]
        before = producers.get(value)
        grid = graph.grids.get(node.output)
        if grid is None or before is None or value in graph.grids:
            continue
        if graph.readers(value) != [node] or isinstance(node.operation, n.Routed):
            continue
        own = node.operation
        if isinstance(own, n.MOVES):
            graph.grids[value] = grid
            return True
        if isinstance(own, n.Clip) and (np.ndim(own.low) or np.ndim(own.high)):
            continue
        if isinstance(own, n.Clip | n.Identity):
            if isinstance(own, n.Clip):
                graph.grids[node.output] = _narrowed(grid, own)
            graph.nodes.remove(node)
            at = graph.nodes.index(before)
            graph.nodes[at] = _renamed(before, node.output)
            return True
    return False


def _renamed(node: n.Node, output: str) -> n.Node:
    """The node with another output."""
    own = node.operation
    if isinstance(own, n.Routed):
        choices = {
            k: (*nodes[:-1], replace(nodes[-1], output=output)) for k, nodes in own.choices.items()
        }
        own = replace(own, choices=choices)
    return n.Node(own, node.inputs, output)


def _check_operations(graph: n.Graph) -> None:
    """Raises UserError for an operation that has no form of codes."""
    for node in graph.nodes:
        if isinstance(node.operation, n.Conv) and node.inputs[0] not in graph.grids:
            raise UserError(
                f"layer {node.output!r} is in full precision, which form=integer has not: convert "
                "with first_last=8 (quant.first_last=8), or export with form=exact"
            )
        if isinstance(node.operation, n.Affine):
            raise UserError(
                f"norm {node.output!r} follows no layer that it could be part of, and has no "
                "integer form: export with form=exact"
            )


def _check_grids(graph: n.Graph) -> None:
    """Raises UserError for the first value that should be a code and is not."""
    last = {graph.logits, graph.routing}
    for node in reversed(graph.nodes):  # the last layer's numbers are the logits
        if node.output in last and isinstance(node.operation, n.Identity):
            last.add(node.inputs[0])
    for node in graph.nodes:
        floats = node.output not in graph.grids and node.output not in last
        if floats and not isinstance(node.operation, n.Controller):
            raise UserError(f"the output of {node.output!r} is float32: {REMEDY}")


# Integers


def _with_integers(node: n.Node, graph: n.Graph) -> n.Node:
    """The node with its weights and biases as int8 and int32 hold them."""
    own = node.operation
    if isinstance(own, n.Routed):
        choices = {
            k: tuple(_with_integers(inner, graph) for inner in nodes)
            for k, nodes in own.choices.items()
        }
        return replace(node, operation=replace(own, choices=choices))
    if not isinstance(own, n.Conv):
        return node
    weight, bias = in_integers(own.weight, own.bias, graph.grids[node.inputs[0]], node.output)
    return replace(node, operation=replace(own, weight=weight, bias_codes=bias))


def in_integers(
    weight: n.Weight, bias: np.ndarray, grid: n.Grid, name: str
) -> tuple[n.Weight, np.ndarray]:
    """A layer's weight as int8 and its bias, int64 ``[O]``, in the unit that int32 has for it.

    Raises:
        UserError: for weights that do not fit.
    """
    return _with_bias(_in_int8(weight, name), bias, grid.scale)


def _in_int8(weight: n.Weight, name: str) -> n.Weight:
    """Codes −128 … 127. Where a norm made 128 of −128, the scale takes the sign back."""
    if weight.small_float is not None:
        raise UserError(
            f"layer {name!r} has weights of small floats, which form=integer has not: "
            "export with form=exact"
        )
    rows = weight.codes.reshape(len(weight.codes), -1)
    signs = np.where(rows.max(1) > LARGEST_CODE, -1, 1).astype(np.int16)
    codes = weight.codes * signs.reshape(-1, *[1] * (weight.codes.ndim - 1))
    if codes.min() < -LARGEST_CODE - 1 or codes.max() > LARGEST_CODE:
        raise UserError(
            f"layer {name!r} has weights whose range is not symmetric, which form=integer has not: "
            "quant.weight.quantizer=symmetric, or export with form=exact"
        )
    return n.Weight(codes, weight.scale * signs, weight.bits)


def _with_bias(
    weight: n.Weight, bias: np.ndarray, input_scale: float
) -> tuple[n.Weight, np.ndarray]:
    """A weight and the bias as int32 in units of (scale of the input) · (scale of the weight).

    Codes of few bits are multiplied by 2ᵗ up to 64, which makes that unit, and with it the rounding
    of the bias, finer. A channel that a norm has all but switched off has so small a
    unit that its bias would overflow: it gets a larger one.
    """
    largest = max(int(np.abs(weight.codes).max()), 1)
    shift = max(int(np.floor(np.log2(SAFE_CODE / largest))), 0)
    codes, scale = weight.codes.astype(np.float64) * 2**shift, weight.scale / 2**shift
    least = np.maximum(np.abs(bias) / (input_scale * LARGEST_BIAS), np.finfo(np.float32).tiny)
    small = np.abs(scale) < least
    unit = np.where(small, least, scale)
    ratio = np.where(small, scale / unit, 1.0).reshape(-1, *[1] * (codes.ndim - 1))
    codes = np.rint(codes * ratio).astype(np.int16)
    biases = np.rint(bias / (input_scale * unit.astype(np.float32).astype(np.float64)))
    return n.Weight(codes, unit, weight.bits), biases.astype(np.int64)
