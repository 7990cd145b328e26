"""Batch norms of a trained float network become part of the layers before them.

In evaluation a batch norm is a scale and a shift of each channel, and so is a part of the layer
whose output it normalises: ``W γ/σ`` and ``β + (b − μ) γ/σ`` (Jacob et al., *Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference*, 2018, equation 14,
https://arxiv.org/abs/1712.05877).
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from dqnet.dataflow import dataflow
from dqnet.module_swap import swap_modules
from dqnet.norm_pairs import norm_pairs
from dqnet.same_function import change_exactly


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
    change_exactly(
        model, sample_input, lambda m: _fold(m, pairs.norm_of), "folding the batch norms"
    )
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
        swaps[norm] = rest_of_norm(norm)
    swap_modules(model, swaps)


def rest_of_norm(norm: nn.Module) -> nn.Module:
    """What a norm does beside normalising: takes its place where it is folded or moved."""
    if isinstance(norm, BatchNormAct2d):
        rest = nn.Sequential(OrderedDict(drop=norm.drop, act=norm.act))
        return rest.train(norm.training)
    return nn.Identity()
