"""Cross-layer equalization: no channel of a weight is so small that one scale cannot hold it.

Nagel et al., *Data-Free Quantization Through Weight Equalization and Bias Correction*, 2019,
section 4.1, https://arxiv.org/abs/1906.04721. Where a piecewise linear activation f with
``f(s x) = s f(x)`` is all that stands between two layers, channel i of the first one's output may
be divided by sᵢ and the second one's weight multiplied by it. With

    sᵢ = √(r1ᵢ r2ᵢ) / r2ᵢ                                                        (equation 11)

both have the range √(r1ᵢ r2ᵢ), where r1ᵢ is the largest magnitude of the first weight's output
channel i, and r2ᵢ that of the second weight's input channel i (half the range of the paper). Layers
that are in two pairs are equalized in turn until nothing changes, as in the paper; so are depthwise
layers, whose output channels are their input channels.

ReLU6 is not such a function. The paper takes ReLU in its place; here its limit becomes 6 / sᵢ, so
that the network computes exactly the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dqnet.dataflow import PLAIN_LAYERS, Call, Dataflow, dataflow
from dqnet.errors import UserError
from dqnet.layers.channel_clamp import ChannelClamp
from dqnet.module_swap import swap_modules
from dqnet.same_function import change_exactly

#: rounds over all pairs, at most, and the relative change of a scale that ends them
ROUNDS = 1000
CONVERGED = 1e-6
#: activations that scale with their input, as modules and as operations
HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU)
OPERATIONS = ("aten.relu", "aten.relu_", "aten.leaky_relu", "aten.leaky_relu_")


@dataclass(frozen=True)
class Pair:
    """Two layers by name, and the clamp between them that must be scaled with the channels.

    Attributes:
        first, second: the layers.
        clamp: the name of a ReLU6 or Hardtanh module; ``None``: nothing is to be done.
    """

    first: str
    second: str
    clamp: str | None = None


def equalize(model: nn.Module, sample_input: Tensor) -> list[Pair]:
    """Equalizes the ranges of the weights of all pairs of layers, in place.

    A pair are two convolutions, or two fully connected layers, each of which runs once, with
    nothing but ReLU, LeakyReLU, ReLU6 or Hardtanh between them, and whose intermediate values
    nothing else reads. ReLU6 and Hardtanh become a
    :class:`~dqnet.layers.channel_clamp.ChannelClamp`.

    Args:
        model: a float model whose batch norms are folded (:func:`dqnet.fold_batch_norms`).
        sample_input: ``[N, C, H, W]``; only its shape, type and device are used.

    Returns:
        The pairs, in order.

    Raises:
        UserError: if there is no pair, a weight is not finite, or the network would compute
            something else; it is then unchanged.
    """
    pairs = find_pairs(model, dataflow(model, sample_input))
    if not pairs:
        raise UserError(
            "nothing to equalize: no two layers have only a ReLU, LeakyReLU or ReLU6 between them; "
            "fold batch norms first (dqnet.fold_batch_norms)"
        )
    for name in {name for pair in pairs for name in (pair.first, pair.second)}:
        if not model.get_submodule(name).weight.isfinite().all():
            raise UserError(f"the weight of {name!r} has values that are not finite")
    change_exactly(model, sample_input, lambda m: _equalize(m, pairs), "equalization")
    return pairs


def find_pairs(model: nn.Module, flow: Dataflow) -> list[Pair]:
    """The pairs of a model, in the order in which their first layers run.

    Args:
        model: the model.
        flow: of a pass through it.
    """
    layers = [m for m in flow.calls if type(m) in PLAIN_LAYERS and _runs_once(m, flow)]
    found = (_pair(flow.calls[layer][0], flow) for layer in layers)
    return [pair for pair in found if pair is not None]


def _pair(first: Call, flow: Dataflow) -> Pair | None:
    """The pair that a layer is the first of, if any."""
    reader, clamp = _only_reader(first, flow), None
    if reader is not None and type(reader.module) in (nn.ReLU6, nn.Hardtanh):
        if not _runs_once(reader.module, flow) or len(reader.shape) < 2:
            return None
        clamp, reader = reader.name, _only_reader(reader, flow)
    elif reader is not None and (
        type(reader.module) in HOMOGENEOUS or (reader.module is None and reader.name in OPERATIONS)
    ):
        reader = _only_reader(reader, flow)
    if reader is None or not _runs_once(reader.module, flow):
        return None
    kinds = [isinstance(call.module, nn.Linear) for call in (first, reader)]
    if type(reader.module) not in PLAIN_LAYERS or kinds[0] != kinds[1]:
        return None
    if not all("weight" in call.module._parameters for call in (first, reader)):
        return None  # computed: weight norm, pruning
    if clamp is not None and kinds[0] and len(reader.shape) != 2:
        return None  # the clamp would not find the channels
    return Pair(first.name, reader.name, clamp)


def _only_reader(call: Call, flow: Dataflow) -> Call | None:
    """The call that alone reads the output of another."""
    readers = flow.users[call.outputs[0]]
    return readers[0] if len(readers) == 1 else None


def _runs_once(module: nn.Module | None, flow: Dataflow) -> bool:
    return module is not None and len(flow.calls[module]) == 1


@torch.no_grad()
def _equalize(model: nn.Module, pairs: list[Pair]) -> None:
    modules = {n: model.get_submodule(n) for pair in pairs for n in (pair.first, pair.second)}
    weights = {name: layer.weight.detach().double() for name, layer in modules.items()}
    scales = [weights[pair.first].new_ones(len(weights[pair.first])) for pair in pairs]
    for _ in range(ROUNDS):
        largest = 0.0
        for pair, total in zip(pairs, scales, strict=True):
            first, groups = weights[pair.first], getattr(modules[pair.second], "groups", 1)
            second = _by_input(weights[pair.second], groups)
            r1, r2 = first.flatten(1).abs().amax(1), second.abs().amax((1, 3)).flatten()
            # A channel without weights on one side has no range to share.
            s = torch.where((r1 > 0) & (r2 > 0), (r1 * r2).sqrt() / r2, 1.0)
            weights[pair.first] = first / s.view(-1, *[1] * (first.dim() - 1))
            weights[pair.second] = (second * s.view(groups, 1, -1, 1)).view_as(weights[pair.second])
            total *= s
            largest = max(largest, (s - 1).abs().max().item())
        if largest < CONVERGED:
            break
    swaps: dict[nn.Module, nn.Module] = {}
    for pair, s in zip(pairs, scales, strict=True):
        if (bias := modules[pair.first].bias) is not None:
            bias /= s
        if pair.clamp is not None:
            clamp = model.get_submodule(pair.clamp)
            limits = (torch.full_like(s, v) / s for v in (clamp.min_val, clamp.max_val))
            weight = modules[pair.first].weight
            swaps[clamp] = ChannelClamp(*(limit.to(weight) for limit in limits))
            swaps[clamp].train(clamp.training)
    for name, layer in modules.items():
        layer.weight.copy_(weights[name])
    swap_modules(model, swaps)


def _by_input(weight: Tensor, groups: int) -> Tensor:
    """A weight as ``[groups, outputs, inputs, elements]`` of each group."""
    return weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)
