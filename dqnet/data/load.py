"""From a configuration to a data set."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import get_type_hints

from dqnet.config import DataConfig
from dqnet.data.splits import Splits
from dqnet.errors import UserError, unknown_name
from dqnet.processes import local_main_first

DAMAGED = ("stop", "skip")


def load_data(config: DataConfig) -> Splits:
    """Check ``config`` and call the function its ``_target_`` names.

    Raises:
        UserError: a value is out of range, ``mean`` and ``std`` do not fit the images, labels do
            not fit the classes, or ``_target_`` is not a data set of ``dqnet.data`` (a
            configuration may come with a downloaded checkpoint, which must not choose the code
            that runs); and whatever the function itself cannot do.
    """
    _check(config)
    load = _resolve(config._target_)
    with local_main_first() if config.download else nullcontext():
        splits = load(config)
    _check_labels(splits)
    channels = splits.image_shape[0]
    if len(config.mean) != channels:
        raise UserError(
            f"data.mean and data.std have {len(config.mean)} values, the images have {channels} "
            f"channel{'s' if channels > 1 else ''}"
        )
    return splits


def _check(config: DataConfig) -> None:
    for key, least in {"batch_size": 1, "size": 1, "crop_padding": 0, "workers": 0}.items():
        if getattr(config, key) < least:
            raise UserError(f"data.{key} must be at least {least}, not {getattr(config, key)}")
    if config.damaged not in DAMAGED:
        raise unknown_name("data.damaged", config.damaged, DAMAGED)
    if not 0 <= config.val_fraction < 1:
        raise UserError(f"data.val_fraction must be in [0, 1), not {config.val_fraction}")
    if len(config.mean) != len(config.std):
        raise UserError(
            f"data.mean has {len(config.mean)} values and data.std has {len(config.std)}; "
            "both need one per channel"
        )
    if not all(value > 0 for value in config.std):
        raise UserError(f"data.std must be above 0, not {list(config.std)}")


def _check_labels(splits: Splits) -> None:
    if splits.num_classes < 2:
        raise UserError(f"the data has {splits.num_classes} class; at least 2 can be told apart")
    for name, part in (("training", splits.train), ("test", splits.test)):
        outside = part.labels[(part.labels < 0) | (part.labels >= splits.num_classes)]
        if len(outside):
            raise UserError(
                f"the {name} part has the label {outside[0]}; "
                f"with {splits.num_classes} classes labels go from 0 to {splits.num_classes - 1}"
            )


def _resolve(target: str) -> Callable[[DataConfig], Splits]:
    module_name, _, name = target.rpartition(".")
    function = None
    if module_name.startswith("dqnet.data."):
        try:
            function = getattr(importlib.import_module(module_name), name, None)
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("dqnet."):
                raise  # the module exists, a package that it needs does not
    if not _is_data_set(function, module_name):
        raise UserError(
            f"data._target_ {target!r} is not a data set of dqnet.data; "
            "one is 'dqnet.data.digits.load'"
        )
    return function


def _is_data_set(function: object, module_name: str) -> bool:
    """Whether it is a function ``(DataConfig) -> Splits`` of this very module.

    A module's namespace also holds what it imports and what it needs for itself.
    """
    return (
        inspect.isfunction(function)
        and function is not load_data
        and function.__module__ == module_name
        and get_type_hints(function) == {"config": DataConfig, "return": Splits}
    )
