"""Number formats, one file per published method. A new one is a new file in this folder."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Sequence
from typing import Any

from dqnet.errors import UserError, unknown_name
from dqnet.quantizers.base import MAX_WIDTH, MIN_WIDTH, Quantizer, check_widths

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

from dqnet.quantizers.dorefa import DoReFa, dorefa_activation, dorefa_weight  # noqa: E402
from dqnet.quantizers.lsq import LSQ, lsq  # noqa: E402
from dqnet.quantizers.pact import PACT, pact_activation  # noqa: E402


def find_quantizer(quantizer: str | type[Quantizer]) -> type[Quantizer]:
    """The class of a name; a class is returned as it is.

    Raises:
        UserError: for a name that no quantizer has; it lists the nearest valid ones. Or for what
            is neither a name nor a quantizer.
    """
    if isinstance(quantizer, str):
        if quantizer not in Quantizer.registry:
            raise unknown_name("quantizer", quantizer, Quantizer.registry)
        return Quantizer.registry[quantizer]
    if not (isinstance(quantizer, type) and issubclass(quantizer, Quantizer)):
        valid = ", ".join(sorted(Quantizer.registry))
        raise UserError(f"quantizer {quantizer!r} is no name ({valid}) and no class of Quantizer")
    return quantizer


def build_quantizer(
    quantizer: str | type[Quantizer],
    widths: Sequence[int],
    signed: bool,
    options: dict[str, Any] | None,
) -> Quantizer:
    """A layer's quantizer.

    Raises:
        UserError: for an unknown name, a bad width, or an option that the quantizer does not take
            or whose value is of the wrong type.
    """
    form = find_quantizer(quantizer)
    known = inspect.signature(form).parameters
    for option in options or {}:
        if option not in known or option in ("widths", "signed"):
            valid = sorted(set(known) - {"widths", "signed"})
            kind = f"option of {form.__name__}"
            raise unknown_name(kind, option, valid or ["none"], "(quant.options)")
    try:
        return form(widths, signed=signed, **(options or {}))
    except TypeError as error:
        raise UserError(f"quant.options {options} do not fit {form.__name__}: {error}") from error


__all__ = [
    "LSQ",
    "MAX_WIDTH",
    "MIN_WIDTH",
    "PACT",
    "DoReFa",
    "Quantizer",
    "build_quantizer",
    "check_widths",
    "dorefa_activation",
    "dorefa_weight",
    "find_quantizer",
    "lsq",
    "pact_activation",
]
