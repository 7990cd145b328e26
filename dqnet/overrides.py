"""Settings as people type them, in Hydra's syntax: paths need no quotes of their own.

Hydra reads a value without quotes only if it consists of ASCII letters, digits and a few signs, and
gives = , ( ) [ ] { } a meaning. Paths have letters of any script, spaces, ``&`` or an apostrophe,
and run folders are named ``quant=lsq,quant.widths=[2,3]``.
"""

from __future__ import annotations

import re
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

#: files and folders that are read: with ``-m`` there may be several, separated by commas
INPUTS = {
    *("data.root", "model.checkpoint_path", "checkpoint", "cascade.checkpoint", "quant.plan"),
    *("loss.cost_options.entries", "loss.cost_options.sparsity"),
}
#: folders that are made if need be
OUTPUTS = {"output", "hydra.run.dir", "hydra.sweep.dir"}
#: lists of paths
LISTS = {"report.baselines"}

_KEY = re.compile(r"\+{0,2}[\w./@-]+")
_QUOTED = re.compile(r"(['\"]).*\1", re.DOTALL)


def as_hydra_reads(argument: str, sweeps: bool = True) -> str:
    """An argument of the command line, with quotes around a value that is meant as it stands.

    That is a path, or a text with characters that have no meaning to Hydra. Anything that Hydra
    reads is left as it is, so its syntax stays available: lists, ``choice()``, ``${...}``, quotes.

    Args:
        argument: as typed; anything but NAME=VALUE is returned unchanged.
        sweeps: whether the command takes several values, separated by commas, for one setting.
    """
    name, _, value = argument.partition("=")
    key, readable, exists = name.lstrip("+"), _read(value) is not None, _exists(value)
    if not value or not _KEY.fullmatch(name) or (_QUOTED.fullmatch(value) and not exists):
        return argument
    if key in LISTS and value.startswith("[") and value.endswith("]"):
        return argument if readable else f"{name}=[{_elements(value[1:-1])}]"
    if key in INPUTS and sweeps and "," in value and not exists:
        return argument if readable else f"{name}={_elements(value)}"
    if key in INPUTS | OUTPUTS:
        return f"{name}={_path(value)}"
    if readable or (set("=,[]{}()\\") & set(value) and not exists):
        return argument
    return f"{name}={_quote(value)}"


def _path(value: str) -> str:
    """A path, in quotes unless Hydra reads these very characters or they are its own syntax."""
    if value.lower() == "null" or (_QUOTED.fullmatch(value) and not _exists(value)):
        return value
    path = _expanded(value)
    read = _read(path)
    is_syntax = read is not None and "\\" in path and not _exists(path)
    return path if is_syntax or read == path else _quote(path)


def _elements(values: str) -> str:
    """Paths separated by commas, each as :func:`_path` has it; a comma may be part of one."""
    pieces, elements = values.split(","), []
    while pieces:
        ends = range(len(pieces), 1, -1)
        end = next((i for i in ends if _exists(",".join(pieces[:i]).strip())), 1)
        elements.append(_path(",".join(pieces[:end]).strip()))
        del pieces[:end]
    return ",".join(elements)


def _read(value: str) -> str | None:
    """What Hydra takes a value for that it can read as it stands, as a text."""
    try:
        return str(OverridesParser.create().parse_override(f"x={value}").value())
    except HydraException:
        return None


def _exists(value: str) -> bool:
    try:
        return Path(_expanded(value)).exists()
    except (OSError, ValueError):  # too long a name, a null byte
        return False


def _expanded(path: str) -> str:
    """``~/data`` in full: the shell leaves it as it is behind a name with a dot."""
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:  # there is no such user
        return path


def _quote(text: str) -> str:
    return QuotedString(text, Quote.single).with_quotes()
