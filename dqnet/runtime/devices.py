"""Where and in what precision a run computes."""

from __future__ import annotations

import ctypes
import ctypes.util

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dqnet.config import TrainerConfig
from dqnet.errors import UserError, unknown_name
from dqnet.layers.global_batch_norm import synchronize_batch_norms
from dqnet.processes import connect, launched, rank, world_size

#: what multiplications are in where that is less than the weights are in
PRECISIONS = {"32": None, "bf16": torch.bfloat16}
#: by type of device; what the processes tell each other about files and signals stays on the CPU
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}


class Device:
    """One process's device, precision and memory format, and its place among the processes.

    With several processes each takes the GPU of its number on its machine. They are connected here:
    by NCCL on GPUs, by gloo on CPUs.

    Args:
        config: ``device`` is ``auto`` (a GPU if there is one), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        UserError: for a device that is not there or a precision that does not exist.
    """

    def __init__(self, config: TrainerConfig) -> None:
        if config.precision not in PRECISIONS:
            raise unknown_name("trainer.precision", config.precision, PRECISIONS)
        self.config = config
        self.low_precision = PRECISIONS[config.precision]
        self.torch_device = _find(config.device)
        if self.torch_device.type == "cpu":
            keep_freed_memory()
        else:
            torch.cuda.set_device(self.torch_device)
        if launched() > 1:
            connect(BACKENDS[self.torch_device.type])
        self.rank, self.world_size = rank(), world_size()
        channels_last = config.channels_last
        if channels_last is None:
            channels_last = self.torch_device.type == "cpu"
        self._format = torch.channels_last if channels_last else torch.contiguous_format

    def place(self, model: nn.Module) -> nn.Module:
        """The model on the device, in the memory format; its norms are those of all processes."""
        if self.world_size > 1 and self.config.sync_batch_norm:
            synchronize_batch_norms(model, self.torch_device)
        return model.to(self.torch_device, memory_format=self._format)

    def wrap(self, model: nn.Module) -> nn.Module:
        """What a training step calls: the model for several processes, and compiled."""
        if self.world_size > 1:
            on_gpu = self.torch_device.type == "cuda"
            model = DistributedDataParallel(model, [self.torch_device] if on_gpu else None)
        return torch.compile(model) if self.config.compile else model

    def images(self, images: Tensor) -> Tensor:
        """A batch on the device, in the memory format."""
        return images.to(self.torch_device, memory_format=self._format)

    def autocast(self) -> torch.autocast:
        """The context of mixed precision."""
        mixed = self.low_precision is not None
        return torch.autocast(self.torch_device.type, self.low_precision, enabled=mixed)


def keep_freed_memory() -> bool:
    """Tells the C library to keep freed memory instead of returning it to the kernel.

    A step allocates and frees the same activations again and again. By default glibc hands the
    larger ones back each time, and the next step takes a page fault for every 4 kB of them: tens
    of thousands per step of a small network, a tenth of its time.

    Returns:
        Whether it took effect: not where the C library is another one.
    """
    name = ctypes.util.find_library("c")
    mallopt = getattr(ctypes.CDLL(name), "mallopt", None) if name else None
    # M_MMAP_THRESHOLD, at the largest that glibc takes, and M_TRIM_THRESHOLD, at never.
    return mallopt is not None and bool(mallopt(-3, 32 * 2**20) and mallopt(-1, 2**31 - 1))


def _find(name: str) -> torch.device:
    wanted = name
    if name == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise UserError(f"trainer.device {name!r} is unknown; valid: auto, cpu, cuda") from error
    if device.type not in BACKENDS:
        raise UserError(f"trainer.device {name!r} is not supported; valid: auto, cpu, cuda")
    if device.type == "cpu":
        return device
    if launched() > 1 and device.index is not None:
        raise UserError(f"trainer.device {name!r} is one GPU; each process needs its own: cuda")
    index = launched("LOCAL_RANK", alone=0) if device.index is None else device.index
    count = torch.cuda.device_count()
    if index >= count:
        needed = f", {index + 1} are needed" if index else ""
        raise UserError(
            f"trainer.device {name!r} is not there: this machine has {count} GPUs{needed}"
        )
    return torch.device("cuda", index)
