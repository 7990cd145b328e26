"""Batch norms of a trained float network become part of the layers before them.

In evaluation a batch norm is a scale and a shift of each channel, and so is a part of the layer
whose output it normalises: ``W γ/σ`` and ``β + (b − μ) γ/σ`` (Jacob et al., *Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference*, 2018, equation 14,
https://arxiv.org/abs/1712.05877).
"""

from __future__ import annotations

import copy
from collections import OrderedDict

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from dqnet.dataflow import dataflow
from dqnet.errors import UserError
from dqnet.module_swap import swap_modules
from dqnet.norm_pairs import norm_pairs
from dqnet.trace import PROBE_SEED, evaluating

#: largest difference of the outputs in float64, relative to the largest output
TOLERANCE = 1e-9


def fold_batch_norms(model: nn.Module, sample_input: Tensor) -> dict[str, str]:
    """Folds every batch norm that normalises one layer's output, and nothing else, into it.

    The model is changed in place and computes the same, in evaluation. A norm's place is taken by
    what it did besides (the dropout and activation of timm's ``BatchNormAct2d``) or by an identity.

    Args:
        model: a float model.
        sample_input: ``[N, C, H, W]``; only its shape, type and device are used.

    Returns:
        The norms that are left: name → why, as in "is shared by 'a' and 'b'".

    Raises:
        UserError: if the network would compute something else; it is then unchanged.
    """
    pairs = norm_pairs(model, dataflow(model, sample_input))
    trial = copy.deepcopy(model).double()
    generator = torch.Generator().manual_seed(PROBE_SEED)
    images = torch.randn(4, *sample_input.shape[1:], generator=generator)
    images = images.to(sample_input.device, torch.float64)
    with torch.no_grad(), evaluating(trial):
        before = trial(images)
        _fold(trial, pairs.norm_of)
        error = (trial(images) - before).abs().max()
    if not error <= TOLERANCE * before.abs().max():
        raise UserError(
            f"folding the batch norms changes what the network computes (by {error:.2g}, its "
            f"largest output is {before.abs().max():.2g}): it is left as it was"
        )
    _fold(model, pairs.norm_of)
    return pairs.reasons


@torch.no_grad()
def _fold(model: nn.Module, norm_of: dict[str, str]) -> None:
    """Folds norms into layers, layer's name → norm's name."""
    swaps: dict[nn.Module, nn.Module] = {}
    for layer_name, norm_name in norm_of.items():
        layer, norm = model.get_submodule(layer_name), model.get_submodule(norm_name)
        values = (
            layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps,
            norm.weight, norm.bias,
        )  # fmt: skip
        values = (v.double() if isinstance(v, Tensor) else v for v in values)
        weight, bias = fuse_conv_bn_weights(*values)  # also right for a Linear
        kind = layer.weight
        layer.weight = nn.Parameter(weight.to(kind), requires_grad=kind.requires_grad)
        layer.bias = nn.Parameter(bias.to(kind), requires_grad=kind.requires_grad)
        swaps[norm] = _rest(norm)
    swap_modules(model, swaps)


def _rest(norm: nn.Module) -> nn.Module:
    """What a norm does besides."""
    if isinstance(norm, BatchNormAct2d):
        rest = nn.Sequential(OrderedDict(drop=norm.drop, act=norm.act))
        return rest.train(norm.training)
    return nn.Identity()
