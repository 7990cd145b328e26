"""The command line: composed configurations become typed objects, errors become one line."""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from dqnet.circumstances import is_circumstance
from dqnet.config import flatten
from dqnet.errors import UserError, unknown_name
from dqnet.overrides import as_hydra_reads
from dqnet.processes import lost_process, reports_late
from dqnet.runtime.files import write_atomically
from dqnet.runtime.lock import LOCK
from dqnet.runtime.stop import Stopped
from dqnet.standard_output import take_every_character
from dqnet.sweep.failure import clear_failure, write_failure

T = TypeVar("T")

#: set this environment variable to see where an error came from
TRACEBACK = "DQNET_TRACEBACK"
#: a folder with one of these holds a run, whole or not
RUN_FILES = ("last.pt", "previous.pt", "best.pt", "summary.json")
#: exit status after Ctrl-C, 128 + the signal's number
INTERRUPTED = 130
#: what Hydra's ValueError says about model=3
_BAD_CHOICE = "Config group override must be"  # and about -m with --cfg:
_TWO_MODES = "Only one of --run"


def to_object(schema: type[T], config: DictConfig) -> T:
    """A composed configuration as an instance of ``schema``, its names and types checked.

    Raises:
        UserError: for a missing value, a wrong type, a number that is not finite, or a key that
            the schema does not have.
    """
    structured = OmegaConf.structured(schema)
    try:
        _check_tables(structured, config)
        merged = OmegaConf.merge(structured, config)
        for key, value in flatten(OmegaConf.to_container(merged, resolve=True)).items():
            for number in value if isinstance(value, list) else [value]:
                # No setting means .nan or .inf, and every comparison misses them.
                if isinstance(number, float) and not math.isfinite(number):
                    raise UserError(f"{key} is {number}; a finite number is needed")
        return OmegaConf.to_object(merged)
    except ConfigKeyError as error:
        raise unknown_name("setting", error.full_key, _keys(structured)) from error
    except OmegaConfBaseException as error:
        key, first = error.full_key or "configuration", str(error).splitlines()[0]
        if "Missing mandatory value" in first:
            first = "a value is needed"
        elif "is not a ListConfig" in first:
            first = f"takes a list, e.g. {key}=[3]"
        raise UserError(f"{key}: {first}") from error


def run_name(overrides: Iterable[str]) -> str:
    """A run's folder name: what distinguishes it from the default, as it was typed.

    Characters that a file name should not have become ``-``; a name that lost something, or is
    cut for its length, ends with a hash of the whole. The same overrides in another order, or with
    another device, are the same run.
    """
    names = ((override, override.lstrip("+~").partition("=")[0]) for override in overrides)
    kept = sorted(override for override, name in names if not is_circumstance(name))
    if not kept:
        return "default"
    whole = ",".join(kept)
    name = re.sub(r"[^\w.,=+\-\[\]]+", "-", whole)
    # File systems count bytes, of which a character can have several.
    name = name.encode()[:120].decode(errors="ignore")
    if name == whole:
        return name
    return f"{name}-{hashlib.sha256(whole.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"


def job(run: Callable[[], T], folder: Path | None = None) -> T | None:
    """Runs the body of a Hydra job; a user's mistake ends it with one line and exit status 1.

    Within a sweep any error is left in ``error.txt``, so that one job does not end the others.

    If nothing came of it, Hydra's own files are removed from the job's folder.

    Returns:
        What ``run`` returns; ``None`` if it failed within a sweep.
    """
    take_every_character()  # in a sweep's own processes too
    if not os.environ.get(TRACEBACK):
        warnings.formatwarning = _warning_line
    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    if in_sweep and folder is not None:
        print(os.path.relpath(folder), flush=True)
    try:
        return run()
    except Exception as error:
        if in_sweep and folder is not None:
            write_failure(folder, error)
            return None
        if not isinstance(error, UserError) and not lost_process(error):
            raise
        if folder is not None and not any((folder / name).exists() for name in RUN_FILES):
            _remove_traces(folder)
        if os.environ.get(TRACEBACK) or in_sweep:
            raise
        # Not an Exception, so Hydra does not add its own account of it.
        _end(f"error: {_one_line(error)}")


def record(config: DictConfig, folder: Path) -> None:
    """Writes ``.hydra/`` as Hydra would; Hydra would do so before a run can refuse its folder.

    From here on the folder is this run's, so an earlier start's failure is forgotten.
    """
    clear_failure(folder)
    target = folder / ".hydra"
    target.mkdir(parents=True, exist_ok=True)
    hydra = HydraConfig.get()
    for name, content in (
        ("config", config),
        ("hydra", OmegaConf.create({"hydra": hydra})),
        ("overrides", hydra.overrides.task),
    ):
        write_atomically(target / f"{name}.yaml", partial(OmegaConf.save, content))


def start(main: Callable[[], Any], config_dir: Path, config_name: str, sweeps: bool = True) -> None:
    """Runs a Hydra entry point; a mistake in its settings ends with one line and exit status 1.

    Args:
        main: a function decorated with ``hydra.main``.
        config_dir, config_name: what it composes, to look up what would have been right.
        sweeps: whether ``-m`` means something to it.
    """
    take_every_character()
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)
    # Hydra prints its errors itself, over several lines; this makes it raise them instead.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv[1:] = [as_hydra_reads(argument, sweeps) for argument in sys.argv[1:]]
    try:
        if not sweeps and {"-m", "--multirun"} & set(sys.argv):
            _end(f"error: {Path(sys.argv[0]).name} takes no -m: start it once for each")
        main()
    except (HydraException, OmegaConfBaseException, OSError, ValueError) as error:
        if os.environ.get(TRACEBACK) or not _is_mistake(error):
            raise
        _end(f"error: {_line(error, config_dir, config_name)}")
    except KeyboardInterrupt as error:
        status = error.status if isinstance(error, Stopped) else INTERRUPTED
        _end("interrupted; the same command continues", status)


def _end(line: str, status: int = 1) -> NoReturn:
    reports_late()
    print(line, file=sys.stderr, flush=True)
    sys.exit(status)


def _remove_traces(folder: Path) -> None:
    shutil.rmtree(folder / ".hydra", ignore_errors=True)
    for name in (LOCK, "plan.json"):
        (folder / name).unlink(missing_ok=True)
    metrics = folder / "metrics.jsonl"
    if metrics.exists() and not metrics.stat().st_size:
        metrics.unlink()
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()


def _is_mistake(error: Exception) -> bool:
    """Whether an error is the user's; OSError: a folder that cannot be made or written."""
    if isinstance(error, UserError | HydraException | OmegaConfBaseException | OSError):
        return True
    return _BAD_CHOICE in str(error) or _TWO_MODES in str(error)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _warning_line(message: Warning | str, *_: Any) -> str:
    return f"warning: {' '.join(str(message).split())}\n"


def _line(error: Exception, config_dir: Path, config_name: str) -> str:
    """One line that says what is wrong and what would be right."""
    message = _one_line(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return _unknown_choice(config_dir, group, choice, error.options)
    if _BAD_CHOICE in message:
        return _bad_choice_line(config_dir) or message
    if "missing EQUAL" in message:
        argument = message.partition("override '")[2].partition("'")[0]
        return f"{argument!r} has no value: settings are NAME=VALUE, see --cfg job"
    if isinstance(error, OverrideParseException):
        reason = message.partition(" See ")[0]
        return (
            f"{error.override!r} is not NAME=VALUE as Hydra reads it ({reason}): "
            "a value with = , ( ) [ ] { } as part of it needs quotes of its own, "
            "'NAME=\"VALUE\"'"
        )
    key = re.search(r"Could not override '([^'@]+)'", message)
    if key is None:
        return message
    settings = _known_settings(config_dir, config_name)
    if key[1] in settings:
        return f"{key[1]} is a table: add to it with +{key[1]}.NAME=VALUE"
    return str(unknown_name("setting", key[1], settings, "(--cfg job shows all)"))


def _bad_choice_line(config_dir: Path) -> str | None:
    """Hydra does not say which argument chose a number or null: the first that chooses no file."""
    for argument in sys.argv[1:]:
        key, _, value = argument.lstrip("+").partition("=")
        if not key:
            return f"{argument!r} has no name: settings are NAME=VALUE, see --cfg job"
        if (config_dir / key).is_dir() and not (config_dir / key / f"{value}.yaml").exists():
            return _unknown_choice(config_dir, key, value)
    return None


def _unknown_choice(
    config_dir: Path, group: str, choice: str, options: list[str] | None = None
) -> str:
    hint = "(any timm model: model.name=NAME)" if group == "model" else ""
    valid = options or [file.stem for file in (config_dir / group).glob("*.yaml")]
    return str(unknown_name(group or "configuration", choice, valid, hint))


def _check_tables(structured: DictConfig, config: DictConfig, prefix: str = "") -> None:
    """Raises UserError for a value where the schema has a table, as in quant.controller=paper."""
    for key in structured:
        schema = OmegaConf.get_type(structured, key)
        value = OmegaConf.select(config, key)
        if not is_dataclass(schema) or value is None:
            continue
        name = f"{prefix}{key}"
        if not isinstance(value, DictConfig):
            raise UserError(
                f"{name} is a table, not {value!r}: set {name}.NAME=VALUE, "
                f"or choose a file of conf/{name.replace('.', '/')} with "
                f"{name.replace('.', '/')}=NAME"
            )
        _check_tables(structured[key], value, f"{name}.")


def _known_settings(config_dir: Path, config_name: str) -> list[str]:
    """Every key of the default configuration, in dotted form."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir), version_base="1.3"):
        return _keys(compose(config_name))


def _keys(config: DictConfig) -> list[str]:
    """The dotted names of all settings and tables."""

    def dotted(tree: dict[Any, Any], prefix: str) -> Iterable[str]:
        for key, value in tree.items():
            yield f"{prefix}{key}"
            if isinstance(value, dict):
                yield from dotted(value, f"{prefix}{key}.")

    return list(dotted(OmegaConf.to_container(config), ""))
