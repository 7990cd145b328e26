"""What a transform of a float model is, and the register of their names."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from dqnet.errors import UserError, unknown_name


class Transform(Protocol):
    """Changes the structure of a float model, before its conversion.

    A frozen dataclass whose fields are what a user sets. The structure that results depends on the
    model's structure and on these fields alone, never on weights, so that a checkpoint of the
    transformed network can be loaded into a new one.

    Attributes:
        name: in a configuration; given by :func:`transform`.
        from_scratch: whether the result has to be trained from random weights.
    """

    name: ClassVar[str]
    from_scratch: ClassVar[bool]

    def __call__(self, model: nn.Module, sample_input: Tensor) -> None:
        """Changes the model in place.

        Args:
            model: in full precision.
            sample_input: ``[N, C, H, W]``; only its shape, type and device matter.

        Raises:
            UserError: for a model that it cannot change, which is then left as it was.
        """


_TRANSFORMS: dict[str, type[Transform]] = {}


def transform(name: str) -> Callable[[type[Transform]], type[Transform]]:
    """Gives a class its name; a file in this folder is found by it with no further registration."""

    def register(cls: type[Transform]) -> type[Transform]:
        cls.name = name
        _TRANSFORMS[name] = cls
        return cls

    return register


def find_transform(described: Mapping[str, Any]) -> Transform:
    """The transform of a table ``{"name": NAME, option: value ...}``.

    Raises:
        UserError: for a name that none has, an option that it does not take, or one that it needs
            and that is missing.
    """
    if not isinstance(described, Mapping) or "name" not in described:
        raise UserError(f"a transform is {{name: NAME, option: value, ...}}, not {described!r}")
    options = dict(described)
    name = str(options.pop("name"))
    if name not in _TRANSFORMS:
        raise unknown_name("transform", name, _TRANSFORMS)
    known = fields(_TRANSFORMS[name])
    for option in options:
        if option not in [field.name for field in known]:
            kind = f"option of transform {name!r}"
            raise unknown_name(kind, str(option), [field.name for field in known])
    for field in known:
        needed = field.default is MISSING and field.default_factory is MISSING
        if needed and field.name not in options:
            raise UserError(f"transform {name!r} needs {field.name}")
    return _TRANSFORMS[name](**options)


def apply(
    model: nn.Module,
    sample_input: Tensor,
    transforms: Sequence[Mapping[str, Any]],
    trained: bool = True,
) -> nn.Module:
    """Applies transforms in order, in place, and returns the model.

    Args:
        model: a float model that takes ``sample_input``.
        sample_input: ``[N, C, H, W]``; only its shape, type and device are used.
        transforms: tables as of ``model.transforms``, ``{"name": "ghost", "ratio": 2}``.
        trained: whether the model's weights are worth keeping; otherwise they are random, or about
            to be replaced by a checkpoint's.

    Raises:
        UserError: for an unknown name or option, a model that a transform cannot change, or a
            trained one where a transform is for training from scratch.
    """
    if isinstance(transforms, str | Mapping):
        raise UserError(f"transforms are a list of tables {{name: NAME, ...}}, not {transforms!r}")
    for own in [find_transform(described) for described in transforms]:
        if trained and own.from_scratch:
            raise UserError(
                f"transform {own.name!r} is for training from scratch: start without weights of "
                "the plain network (model.checkpoint_path, model.pretrained)"
            )
        known = set(model.modules())
        own(model, sample_input)
        for module in set(model.modules()) - known:
            module.training = model.training
    return model


def stages(
    model: nn.Module, sample_input: Tensor, transforms: Sequence[Mapping[str, Any]]
) -> list[nn.Module]:
    """The model and what it is after each transform; weights that are new are random.

    The model itself is the first and stays as it is.
    """
    found = [model]
    for own in transforms:
        found.append(apply(copy.deepcopy(found[-1]), sample_input, [own], trained=False))
    return found
