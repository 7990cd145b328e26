"""Methods of quantization, one published method per file; a new one is a new file here."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from dqnet.errors import UserError, unknown_name
from dqnet.formats import Format
from dqnet.quantizers.base import TENSORS, Quantizer
from dqnet.quantizers.codes import Codes

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

#: a method by name, for both tensors; a class; or one of either for the weight and for the input
Method: TypeAlias = "str | type[Quantizer] | tuple[str | type[Quantizer], str | type[Quantizer]]"
#: options of both tensors' quantizers, each taking its own; or one table for each
Options: TypeAlias = "dict[str, Any] | tuple[dict[str, Any], dict[str, Any]] | None"


def find_quantizers(method: Method) -> tuple[type[Quantizer], type[Quantizer]]:
    """The classes that quantize a layer's weight and its input.

    Raises:
        UserError: for a name that no quantizer has, with the nearest valid ones; for a method that
            has no weights or no inputs; or for what is neither a name nor a quantizer.
    """
    pair = method if isinstance(method, tuple) else (method, method)
    if len(pair) != len(TENSORS):
        raise UserError(f"quantizer {method!r} must be one, or a pair for weight and input")
    return tuple(_find(own, of) for own, of in zip(pair, TENSORS, strict=True))


def _find(quantizer: str | type[Quantizer], of: str) -> type[Quantizer]:
    registry = Quantizer.registry
    if isinstance(quantizer, str):
        if quantizer not in registry:
            raise unknown_name("quantizer", quantizer, registry)
        classes = registry[quantizer]
        if of not in classes and of == "weight":
            classes = registry.get(classes["input"].weights, {})
        if of not in classes:
            valid = ", ".join(sorted(name for name in registry if of in registry[name]))
            raise UserError(f"quantizer {quantizer!r} is not for a layer's {of}; valid: {valid}")
        return classes[of]
    if not (isinstance(quantizer, type) and issubclass(quantizer, Quantizer)):
        valid = ", ".join(sorted(registry))
        raise UserError(
            f"quantizer {quantizer!r} is neither a name ({valid}) nor a subclass of Quantizer"
        )
    return quantizer


def build_quantizers(
    method: Method,
    weight: Sequence[Format],
    input: Sequence[Format],  # noqa: A002 - the field's word for it
    *,
    signed: bool,
    channels: int,
    options: Options = None,
) -> tuple[Quantizer, Quantizer]:
    """A layer's quantizers, of its weight and of its input.

    Args:
        method: see :data:`Method`.
        weight, input: the different formats of each.
        signed: whether the input can be negative; a weight always can.
        channels: the layer's output channels.
        options: see :data:`Options`.

    Raises:
        UserError: for an unknown name, or an option that no quantizer takes or whose value is of
            the wrong type.
    """
    tables = options if isinstance(options, tuple) else takes(method, options or {})
    built = []
    for cls, table, formats, more in zip(
        find_quantizers(method),
        tables,
        (weight, input),
        ({"signed": True, "channels": channels}, {"signed": signed}),
        strict=True,
    ):
        _check_options(table, _options(cls), cls.__name__)
        try:
            built.append(cls(formats, **more, **table))
        except TypeError as error:
            raise UserError(f"quant.options {table} do not fit {cls.__name__}: {error}") from error
    return built[0], built[1]


def takes(method: Method, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Which of some options the weight's and which the input's quantizer takes.

    Raises:
        UserError: for one that neither does.
    """
    classes = find_quantizers(method)
    known = [_options(cls) for cls in classes]
    owner = " and ".join(dict.fromkeys(cls.__name__ for cls in classes))
    _check_options(options, known[0] | known[1], owner)
    of_weight, of_input = ({k: v for k, v in options.items() if k in own} for own in known)
    return of_weight, of_input


def _options(cls: type[Quantizer]) -> set[str]:
    """The names of a class's own options; ``**options`` are those of the class that it extends."""
    named: set[str] = set()
    for base in cls.__mro__[: cls.__mro__.index(Quantizer)]:
        if "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters.values()
            named |= {p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD}
            if all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters):
                break
    return named - {"self", "formats", "signed", "channels"}


def _check_options(given: Mapping[str, Any], known: set[str], owner: str) -> None:
    for option in given:
        if option not in known:
            kind = f"option of {owner}"
            raise unknown_name(kind, option, sorted(known) or ["none"], "(quant.options)")


__all__ = [
    "TENSORS",
    "Codes",
    "Method",
    "Options",
    "Quantizer",
    "build_quantizers",
    "find_quantizers",
    "takes",
]
