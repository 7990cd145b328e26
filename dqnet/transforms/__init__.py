"""Transforms of a float model before its conversion: one file each."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

from dqnet.transforms.base import Transform, apply, find_transform, stages  # noqa: E402
from dqnet.transforms.channels import Channels  # noqa: E402

__all__ = ["Channels", "Transform", "apply", "find_transform", "stages"]
