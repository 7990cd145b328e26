"""Real removal of filters: the smaller network with the same logits.

``torch-pruning`` (Fang et al., *DepGraph: Towards Any Structural Pruning*, CVPR 2023,
https://arxiv.org/abs/2301.12900) finds what belongs to a filter (the norm behind it, depthwise
convolutions, other layers that are added to it, the weights that read it) and cuts it out.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dqnet.errors import UserError
from dqnet.trace import PROBE_SEED, evaluating

#: images of noise that logits are compared on
IMAGES = 16
#: the largest difference of two logits that is rounding, in units of the largest logit
ROUNDING = 1e-4


def remove_filters(model: nn.Module, sample_input: Tensor) -> tuple[nn.Module, dict[str, int]]:
    """A copy of a float model without the filters that add nothing to its output.

    Those are filters that are zero in all that belongs to them: the weights of every layer whose
    output they are, biases, and scale and shift of their norms. Each layer keeps one at least.

    Args:
        model: a float model; it is left as it was.
        sample_input: ``[N, C, H, W]``; only its shape, type and device matter.

    Returns:
        The smaller model in evaluation mode, and the output channels of every layer that has fewer.

    Raises:
        UserError: if torch-pruning is not installed or cannot trace the network, no filter can be
            removed, or without them the logits would be others.
    """
    tp = _import_torch_pruning()
    smaller = copy.deepcopy(model).eval().requires_grad_(True)
    with torch.enable_grad():
        try:
            graph = tp.DependencyGraph().build_dependency(smaller, sample_input[:1], verbose=False)
        except Exception as error:  # whatever a network's code leads to
            line = str(error).partition("\n")[0]
            raise UserError(f"torch-pruning cannot trace the network: {line}") from error
    counts: dict[str, int] = {}
    for layer in list(smaller.modules()):
        if not isinstance(layer, nn.Conv2d) or layer not in graph.module2node:
            continue
        before = layer.out_channels
        zero = (layer.weight.flatten(1) == 0).all(1).nonzero().flatten().tolist()
        prune = tp.prune_conv_out_channels
        idle = [i for i in zero if _is_idle(graph, graph.get_pruning_group(layer, prune, [i]))]
        idle = idle[: before - 1]
        if idle:
            graph.get_pruning_group(layer, prune, idle).prune()
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            left = len(smaller.get_submodule(name).weight)
            if left != len(layer.weight):
                counts[name] = left
    if not counts:
        raise UserError(
            "no filter can be removed: none is zero together with the norm behind it; train with "
            "prune=soft_filters"
        )
    difference, largest = logits_difference(model, smaller, sample_input)
    if difference > ROUNDING * largest:
        raise UserError(
            f"without the filters that are zero the logits differ by {difference:.2g} (the largest "
            f"one is {largest:.2g}): an activation does not map zero to zero"
        )
    return smaller, counts


@torch.no_grad()
def logits_difference(
    model: nn.Module, other: nn.Module, sample_input: Tensor
) -> tuple[float, float]:
    """The largest difference of two networks' logits on noise, and the largest logit."""
    generator = torch.Generator().manual_seed(PROBE_SEED)
    noise = torch.randn(IMAGES, *sample_input.shape[1:], generator=generator).to(sample_input)
    with evaluating(model), evaluating(other):
        ours, theirs = model(noise), other(noise)
    if ours.shape != theirs.shape:
        return float("inf"), float(ours.abs().max())
    return float((ours - theirs).abs().max()), float(ours.abs().max())


def _is_idle(graph: Any, group: Iterable[Any]) -> bool:
    """Whether all that belongs to a filter is zero, and something else than the result reads it."""
    is_read = False
    for dependency, indices in group:
        module = dependency.target.module
        if isinstance(module, nn.Parameter):
            return False
        if graph.is_out_channel_pruning_fn(dependency.handler):
            own = module.parameters(recurse=False)
            if any((parameter[indices] != 0).any() for parameter in own):
                return False
        else:
            is_read |= graph.is_in_channel_pruning_fn(dependency.handler)
    return is_read


def _import_torch_pruning() -> Any:
    try:
        import torch_pruning
    except ImportError as error:
        raise UserError("torch-pruning is not installed: pip install dqnet[compression]") from error
    return torch_pruning
