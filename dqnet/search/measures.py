"""What quantizing one layer alone costs in accuracy, by two kinds of measure.

``loss`` and ``kl`` run the network with the layer quantized. ``hessian`` and ``gradient`` estimate
the same from derivatives of the full-precision network, in one or a few backward passes for all
layers and precisions. Each gives float64 ``[L, K]``, summed over the images of a batch, in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dqnet.errors import UserError
from dqnet.layers import QuantLayer
from dqnet.search.base import Batch, Problem
from dqnet.search.trials import Operations, Trials

#: of one batch, how a layer's error counts: the layer's weight or input, and its error → a number
Weigh = Callable[[Tensor], Tensor]


def by_trials(problem: Problem, operations: Operations, batch: Batch, kind: str) -> Tensor:
    """Runs the batch with one layer at one precision, L × K times.

    ``loss``: cross-entropy less that of the network in full precision. ``kl``: the divergence
    KL(full precision ‖ quantized) of the class probabilities, which needs no labels.
    """
    trials = Trials(operations, [batch])
    _, labels = batch
    exact = trials.logits(trials.full)

    def loss(logits: Tensor) -> float:
        if kind == "kl":
            log_p = (logits.log_softmax(1), exact.log_softmax(1))
            return F.kl_div(*log_p, reduction="sum", log_target=True).item()
        return F.cross_entropy(logits, labels, reduction="sum").item()

    result = torch.zeros_like(problem.prices)
    without = loss(exact)
    for layer, candidates in enumerate(problem.candidates):
        trials.keep(trials.full, layer)
        for k in candidates:
            chosen = [*trials.full]
            chosen[layer] = k
            result[layer, k] = loss(trials.logits(chosen)) - without
    return result


def by_hessian(problem: Problem, batch: Batch, samples: int, generator: torch.Generator) -> Tensor:
    """½ · (Tr H / n) · ‖Q(v) − v‖², summed over a layer's weight and its input v of n elements.

    HAWQ-V2 (Dong et al. 2020, https://arxiv.org/abs/1911.03852) leaves out the ½. Traces are
    Hutchinson's estimate, the mean of zᵀHz over vectors z of random signs. Each tensor has products
    of its own: in one of all tensors what belongs to two of them is zero in the mean alone, and its
    noise is far above the smaller traces.
    """
    means = []
    with torch.enable_grad(), _derivatives(problem) as tensors:
        loss = _loss(problem, batch)
        values = tensors()
        gradients = torch.autograd.grad(loss, values, create_graph=True)
        for value, gradient in zip(values, gradients, strict=True):
            trace = 0.0
            for _ in range(samples):
                z = torch.randint(2, value.shape, generator=generator).mul_(2).sub_(1).to(value)
                (product,) = torch.autograd.grad(gradient, value, z, retain_graph=True)
                trace += (product * z).sum().item() / samples
            # A trace below zero, which is noise or a saddle, does not make errors welcome.
            means.append(max(trace, 0.0) / value.numel())
    weigh = [lambda error, m=m: m * error.square().sum() / 2 for m in means]
    return _weighed(problem, values, weigh)


def by_gradient(problem: Problem, batch: Batch) -> Tensor:
    """½ · Σ g² · (Q(v) − v)² over a layer's weight and its input v.

    g² is the diagonal of the Fisher information. Close to FIT (Zandonati et al. 2022,
    https://arxiv.org/abs/2210.08502), which takes traces. For inputs g is each image's own
    gradient; for weights that of the batch, whose square stands for the sum of the images' squares
    as their gradients are nearly independent.
    """
    with torch.enable_grad(), _derivatives(problem) as tensors:
        loss = _loss(problem, batch)
        values = tensors()
        squares = [g.square() for g in torch.autograd.grad(loss, values)]
    weigh = [lambda error, g=g: (g * error.square()).sum() / 2 for g in squares]
    return _weighed(problem, values, weigh)


def by_step(problem: Problem, alpha: float) -> Tensor:
    """s_a + α · s_w: the steps of LSQ as importance, for the whole set at once.

    LIMPQ (Tang et al. 2022, https://arxiv.org/abs/2203.08368) trains the steps of all widths
    together first; without training they are those of the calibration.

    Raises:
        UserError: if a quantizer has no step for each format.
    """
    result = torch.zeros_like(problem.prices)
    for row, layer, candidates in zip(result, _layers(problem), problem.candidates, strict=True):
        steps = [getattr(q, "step", None) for q in (layer.weight_quantizer, layer.input_quantizer)]
        if any(step is None or step.dim() != 1 for step in steps):
            raise UserError("measure=lsq_step reads the steps of LSQ: convert with quant=lsq")
        for k, own in enumerate(candidates):
            weight = steps[0][layer.weight_quantizer.formats.index(layer.precisions[k].weight)]
            at_input = steps[1][layer.input_quantizer.formats.index(layer.precisions[k].input)]
            row[own] = (at_input + alpha * weight).item()
    return result


def _layers(problem: Problem) -> list[QuantLayer]:
    return [problem.model.backbone.get_submodule(own.name) for own in problem.model.routed_layers]


def _loss(problem: Problem, batch: Batch) -> Tensor:
    images, labels = batch
    chosen = [own[0] for own in problem.candidates]
    with problem.model.fixed(chosen, images):
        logits = problem.model.backbone(images)
    return F.cross_entropy(logits.float(), labels, reduction="sum")


@contextmanager
def _derivatives(problem: Problem) -> Iterator[Callable[[], list[Tensor]]]:
    """Layers run in full precision and remember their inputs; yields what returns both tensors.

    They are weight, input, weight, input … in the order of the layers.
    """
    layers = _layers(problem)
    inputs: dict[nn.Module, Tensor] = {}

    def remember(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0]
        # A tensor of its own: another layer may read the same one.
        x = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
        inputs[module] = x
        return (x, *args[1:])

    needed = {layer.weight: layer.weight.requires_grad for layer in layers}
    handles = [layer.register_forward_pre_hook(remember) for layer in layers]
    for layer in layers:
        layer.weight.requires_grad_(True)
        layer.unquantized = True
    try:
        yield lambda: [tensor for layer in layers for tensor in (layer.weight, inputs[layer])]
    finally:
        for handle in handles:
            handle.remove()
        for layer in layers:
            layer.unquantized = False
        for weight, wanted in needed.items():
            weight.requires_grad_(wanted)


@torch.no_grad()
def _weighed(problem: Problem, values: list[Tensor], weigh: list[Weigh]) -> Tensor:
    """What the errors of all layers at all precisions count."""
    result = torch.zeros_like(problem.prices)
    layers = zip(_layers(problem), problem.candidates, strict=True)
    for i, (layer, candidates) in enumerate(layers):
        weight, x = values[2 * i : 2 * i + 2]
        of_weight, of_input = weigh[2 * i : 2 * i + 2]
        weights = layer.quantized_weights()
        # Many precisions may share a format.
        at_weight = {own.weight: k for k, own in enumerate(layer.precisions)}
        at_input = {own.input: k for k, own in enumerate(layer.precisions)}
        counted = {own: of_weight(weights[k] - weight).item() for own, k in at_weight.items()}
        read = {
            own: of_input(layer.quantized_input(x, k) - x).item() for own, k in at_input.items()
        }
        for column, own in zip(candidates, layer.precisions, strict=True):
            result[i, column] = counted[own.weight] + read[own.input]
    return result
