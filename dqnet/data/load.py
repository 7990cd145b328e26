"""From a configuration to a data set."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from dqnet.config import DataConfig
from dqnet.data.splits import Splits
from dqnet.errors import UserError


def load_data(config: DataConfig) -> Splits:
    """Check ``config`` and call the function its ``_target_`` names.

    Raises:
        UserError: a value is out of range, ``mean`` and ``std`` do not fit the images, or
            ``_target_`` is not a function defined in the ``dqnet`` package (a configuration may
            come with a downloaded checkpoint, which must not choose the code that runs); and
            whatever the function itself cannot do.
    """
    _check(config)
    splits = _resolve(config._target_)(config)
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
    if not 0 <= config.val_fraction < 1:
        raise UserError(f"data.val_fraction must be in [0, 1), not {config.val_fraction}")
    if len(config.mean) != len(config.std):
        raise UserError(
            f"data.mean has {len(config.mean)} values and data.std has {len(config.std)}; "
            "both need one per channel"
        )
    if not all(value > 0 for value in config.std):
        raise UserError(f"data.std must be above 0, not {list(config.std)}")


def _resolve(target: str) -> Callable[[DataConfig], Splits]:
    module_name, _, name = target.rpartition(".")
    function = None
    if module_name.startswith("dqnet."):
        try:
            function = getattr(importlib.import_module(module_name), name, None)
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("dqnet."):
                raise  # the module exists, a package that it needs does not
    # A dqnet module's namespace also holds what it imports, which is not meant.
    if not callable(function) or getattr(function, "__module__", None) != module_name:
        raise UserError(
            f"data._target_ {target!r} is not a function of the dqnet package; "
            "one is 'dqnet.data.digits.load'"
        )
    return function
