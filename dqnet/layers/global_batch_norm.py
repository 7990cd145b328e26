"""Batch norm over the batch of all processes, on a GPU (PyTorch's) and on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dqnet.layers.quant_layer import QuantLayer
from dqnet.processes import gathered
from dqnet.quantizers.half import widened


class CpuSyncBatchNorm(_BatchNorm):
    """``nn.SyncBatchNorm``, which computes on GPUs only, for ``[N, C, ...]`` on a CPU.

    In training every process has the same N.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        axes = [0, *range(2, x.dim())]
        var, mean = torch.var_mean(widened(x), axes, correction=0)
        means, variances = gathered(torch.stack((mean, var)).unsqueeze(0)).unbind(1)
        mean, var = means.mean(0), variances.mean(0) + means.var(0, correction=0)
        if self.track_running_stats:
            self._track(mean.detach(), var.detach(), len(means) * x.numel() // x.shape[1])
        scale = (var + self.eps).rsqrt()
        offset = -mean * scale
        if self.affine:
            scale, offset = scale * self.weight, offset * self.weight + self.bias
        shape = (-1, *[1] * (x.dim() - 2))
        return (x * scale.view(shape) + offset.view(shape)).to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: int) -> None:
        self.num_batches_tracked += 1
        # Without a momentum PyTorch keeps the plain mean of all batches.
        share = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked.item()
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(var * count / max(count - 1, 1), share)

    def _check_input_dim(self, x: Tensor) -> None:
        """``[N, C]`` and more are all taken."""


class GlobalBatchNorm(_BatchNorm):
    """Takes another norm's place, and does what timm's ``BatchNormAct2d`` does after it."""

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(
            norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
        )
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.drop = getattr(norm, "drop", nn.Identity())
        self.act = getattr(norm, "act", nn.Identity())
        # Where it is a converted network's split point, the hook that runs its controller.
        self._forward_hooks = norm._forward_hooks
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


class _CpuSuccessor(GlobalBatchNorm, CpuSyncBatchNorm):
    pass


class _GpuSuccessor(GlobalBatchNorm, nn.SyncBatchNorm):
    pass


def synchronize_batch_norms(model: nn.Module, device: torch.device) -> None:
    """Makes every batch norm of a model one over all processes, in place.

    Parameters, statistics and their names stay; ``device`` is where it is going to compute.
    """
    form = _CpuSuccessor if device.type == "cpu" else _GpuSuccessor
    successors: dict[nn.Module, GlobalBatchNorm] = {}
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                successors[child] = form(child)
                setattr(module, name, successors[child])
    for module in model.modules():
        if isinstance(module, QuantLayer) and module.following is not None:
            module.following.norm = successors.get(module.following.norm, module.following.norm)
