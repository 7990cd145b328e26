"""Where and in what precision a run computes: a thin layer over Lightning Fabric."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor, nn

from dqnet.config import TrainerConfig
from dqnet.errors import UserError, unknown_name
from dqnet.layers.global_batch_norm import synchronize_batch_norms
from dqnet.network import ScoredOutput
from dqnet.processes import broadcast_buffers, gathered, launched, rank, world_size
from dqnet.runtime.malloc import keep_freed_memory
from dqnet.runtime.rendezvous import connect

PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed"}
#: by type of device; what the processes tell each other about files and signals stays on the CPU
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}

# It announces every process.
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)


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
        self.torch_device = _find(config.device)
        if self.torch_device.type == "cpu":
            keep_freed_memory()
        backend = BACKENDS[self.torch_device.type]
        on_machine = launched("LOCAL_WORLD_SIZE")
        alone = 1 if self.torch_device.type == "cpu" else [self.torch_device.index or 0]
        self.fabric = Fabric(
            accelerator=self.torch_device.type,
            devices=alone if launched() == 1 else on_machine,
            num_nodes=launched() // on_machine,
            strategy="auto" if launched() == 1 else DDPStrategy(process_group_backend=backend),
            precision=PRECISIONS[config.precision],
        )
        if launched() > 1:
            connect(backend)
        self.fabric.launch()
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

    def wrap(
        self, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """What a training step calls and steps; both share their state with what is given."""
        compiled = torch.compile(model) if self.config.compile else model
        return self.fabric.setup(compiled, optimizer, move_to_device=False)

    def images(self, images: Tensor) -> Tensor:
        """A batch on the device, in the memory format."""
        return images.to(self.torch_device, memory_format=self._format)

    def gather(
        self, output: ScoredOutput, labels: Tensor, teacher_logits: Tensor | None
    ) -> tuple[ScoredOutput, Tensor, Tensor | None]:
        """A training step's outputs, labels and what a teacher said, of all processes' images."""
        taught = None if teacher_logits is None else gathered(teacher_logits)
        return ScoredOutput(*map(gathered, output)), gathered(labels), taught

    def broadcast_buffers(self, model: nn.Module) -> nn.Module:
        """The model with process 0's running statistics, which training may leave different."""
        broadcast_buffers(model)
        return model

    def autocast(self) -> AbstractContextManager[None]:
        """The context of mixed precision."""
        return self.fabric.autocast()

    def backward(self, loss: Tensor) -> None:
        """Back-propagates."""
        self.fabric.backward(loss)


def _find(name: str) -> torch.device:
    wanted = name
    if name == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise UserError(f"trainer.device {name!r} is unknown; valid: auto, cpu, cuda") from error
    if device.type not in ("cpu", "cuda"):
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
