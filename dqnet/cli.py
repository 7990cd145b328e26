"""The command line: composed configurations become typed objects, errors become one line."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dqnet.errors import UserError, unknown_name

T = TypeVar("T")

#: set it to see where an error came from
TRACEBACK = "DQNET_TRACEBACK"


def to_object(schema: type[T], config: DictConfig) -> T:
    """A composed configuration as an instance of ``schema``, its names and types checked.

    Raises:
        UserError: for a missing value, a wrong type, or a key that the schema does not have.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), config)
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(_omegaconf_line(error, config)) from error


def run_name(overrides: Iterable[str]) -> str:
    """A run's folder name: what distinguishes it from the default, as it was typed.

    Characters that a file name should not have become ``-``; a name that lost something, or is
    cut for its length, ends with a hash of the whole. The same overrides in another order, or with
    another device, are the same run.
    """
    import hashlib

    circumstances = ("trainer.device=", "trainer.progress=", "data.workers=", "logger", "hydra")
    kept = sorted(o for o in overrides if not o.lstrip("+~").startswith(circumstances))
    if not kept:
        return "default"
    whole = ",".join(kept)
    name = re.sub(r"[^\w.,=+\-\[\]]+", "-", whole)[:120]
    if name == whole:
        return name
    return f"{name}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def start(main: Callable[[], Any], config_dir: Path, config_name: str) -> None:
    """Runs a Hydra entry point; what a user can cause ends with one line and exit status 1.

    Args:
        main: a function decorated with ``hydra.main``.
        config_dir: the folder that it composes from, to look up what would have been right.
        config_name: the file that it composes.
    """
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)
    # Hydra prints its errors itself, with a traceback where it knows nothing better; this makes it
    # raise them instead.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        main()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if os.environ.get(TRACEBACK):
            raise
        print(f"error: {_line(error, config_dir, config_name)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; the same command continues after the last epoch", file=sys.stderr)
        sys.exit(130)


def _line(error: Exception, config_dir: Path, config_name: str) -> str:
    """One line that says what is wrong and what would be right."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        hint = "(any timm model: model.name=NAME)" if group == "model" else ""
        if not group:
            return f"there is no configuration {choice!r} in {config_dir}"
        return str(unknown_name(group, choice, error.options or [], hint))
    message = " ".join(str(error).split())
    key = re.search(r"Could not override '([^']+)'", message)
    if key and ("not in struct" in message or "not in" in message):
        return str(unknown_name("setting", key[1], _known_settings(config_dir, config_name)))
    group = re.search(r"Could not override '([^'@]+)'.*No match in the defaults list", message)
    if group:
        groups = [p.name for p in config_dir.iterdir() if p.is_dir()]
        return str(unknown_name("setting", group[1], groups))
    return message


def _omegaconf_line(error: OmegaConfBaseException, config: DictConfig) -> str:
    key = getattr(error, "full_key", None) or "configuration"
    first = str(error).splitlines()[0]
    missing = "Missing mandatory value" in first
    return f"{key}: {'a value is needed' if missing else first}"


def _known_settings(config_dir: Path, config_name: str) -> list[str]:
    """Every key of the default configuration, in dotted form."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir), version_base="1.3"):
        config = compose(config_name)
    return list(_keys(OmegaConf.to_container(config)))


def _keys(tree: Any, prefix: str = "") -> Iterable[str]:
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")
