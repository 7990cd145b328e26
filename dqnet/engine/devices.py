"""Where and in what precision a run computes: a thin layer over Lightning Fabric."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from dqnet.config import TrainerConfig
from dqnet.engine.memory import keep_freed_memory
from dqnet.errors import UserError, unknown_name

PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed"}


class Device:
    """One process's device, its precision and its memory format.

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
        self.fabric = Fabric(
            accelerator=self.torch_device.type,
            devices=1 if self.torch_device.type == "cpu" else [self.torch_device.index or 0],
            precision=PRECISIONS[config.precision],
        )
        channels_last = config.channels_last
        if channels_last is None:
            channels_last = self.torch_device.type == "cpu"
        self._format = torch.channels_last if channels_last else torch.contiguous_format

    def place(self, model: nn.Module) -> nn.Module:
        """The model on the device, in the memory format."""
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

    def autocast(self) -> AbstractContextManager[None]:
        """The context of mixed precision."""
        return self.fabric.autocast()

    def backward(self, loss: Tensor) -> None:
        """Back-propagates."""
        self.fabric.backward(loss)


def _find(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"trainer.device {name!r} is unknown; valid: auto, cpu, cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"trainer.device {name!r} is not supported; valid: auto, cpu, cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UserError(f"trainer.device {name!r} is not there: this machine has {count} GPUs")
    return device
