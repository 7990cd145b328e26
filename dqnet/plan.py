"""A plan says what every layer of a network runs at, and is a value.

It is made by rules (:mod:`dqnet.rules`), by a search or by hand; conversion carries it out.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dqnet.errors import UserError, unknown_name
from dqnet.formats import Format, Precision, as_written, parse_precisions
from dqnet.layers.winograd import Winograd

ROLES = ("full", "static", "routed")
FULL = "full"
#: how large a layer is
_COUNTS = ("macs", "weights", "inputs", "outputs")
#: and if it is a Winograd convolution
_COUNTS_OF_WINOGRAD = ("multiplications", "additions")
#: of the former, those that do not depend on the images
_OF_MODEL = ("weights",)


class PlanMismatchError(UserError):
    """A plan is of another model.

    Attributes:
        difference: the first one.
    """

    def __init__(self, difference: str) -> None:
        super().__init__(f"the plan is of another model: {difference}")
        self.difference = difference


@dataclass(frozen=True)
class LayerPlan:
    """What one layer of a network runs at, and how large it is.

    Attributes:
        name: its module name in the float model.
        role: ``"full"`` precision, ``"static"`` (one precision) or ``"routed"`` (several).
        precisions: its candidates, ascending; empty in full precision.
        macs: multiply-accumulates for one image.
        weights: elements of its weight; 0 for a module that multiplies activations alone.
        inputs, outputs: elements for one image.
        pinned: whether its precision is its own, whatever ``target_bits`` says: of "the static
            b-bit network" that a target is the cost of, it is not at b bits either.
        winograd: how it multiplies if it is a Winograd convolution; ``None``: directly, ``macs``
            times. Its precision is then of what is transformed.
        multiplications, additions: of a Winograd convolution for one image: products of taps, and
            additions of the transforms of inputs and outputs; conversion counts them.
    """

    name: str
    role: str
    precisions: tuple[Precision, ...] = ()
    macs: int = 0
    weights: int = 0
    inputs: int = 0
    outputs: int = 0
    pinned: bool = False
    winograd: Winograd | None = None
    multiplications: int = 0
    additions: int = 0

    @property
    def widths(self) -> tuple[int | str, ...]:
        """The precisions as a user writes them."""
        return as_written(self.precisions)

    def products(self, precision: Precision) -> tuple[int, Precision]:
        """How many products there are for one image at a precision, and of which two formats."""
        if self.winograd is None:
            return self.macs, precision
        own = Format(self.winograd.bits)
        return self.multiplications, Precision(own, own)

    def to_json(self) -> dict[str, Any]:
        """As a line of ``plan.json``."""
        line: dict[str, Any] = {"name": self.name, "role": self.role}
        if self.precisions:
            line["precisions"] = list(self.widths)
        line |= {key: getattr(self, key) for key in _COUNTS}
        line |= {"pinned": True} if self.pinned else {}
        if self.winograd is not None:
            line["winograd"] = self.winograd.to_json()
            line |= {key: getattr(self, key) for key in _COUNTS_OF_WINOGRAD}
        return line

    @classmethod
    def from_json(cls, line: Any) -> LayerPlan:
        """Reads what :meth:`to_json` made.

        Raises:
            UserError: that names the layer and what is wrong with it.
        """
        if not isinstance(line, dict) or not isinstance(line.get("name"), str):
            raise UserError(f"a plan's layer has no name: {json.dumps(line)[:80]}")
        name, role = line["name"], line.get("role")
        valid = ("name", "role", "precisions", "pinned", "winograd", *_COUNTS, *_COUNTS_OF_WINOGRAD)
        for key in line:
            if key not in valid:
                raise unknown_name(f"key of layer {name!r} in a plan", key, valid)
        if role not in ROLES:
            raise unknown_name(f"role of layer {name!r}", str(role), ROLES)
        counts = {key: line.get(key) for key in _COUNTS}
        counts |= {key: line.get(key, 0) for key in _COUNTS_OF_WINOGRAD}
        for key, count in counts.items():
            if type(count) is not int or count < 0:
                raise UserError(f"layer {name!r} has {key} {count!r}; it is a count")
        try:
            given = line.get("precisions", [])
            precisions = parse_precisions(given) if role != FULL or given else ()
            how = line.get("winograd")
            how = None if how is None else Winograd.from_json(how)
        except UserError as error:
            raise UserError(f"layer {name!r} of the plan: {error}") from error
        right = {FULL: len(precisions) == 0, "static": len(precisions) == 1}
        if not right.get(role, len(precisions) > 1):
            needs = {FULL: "no precisions", "static": "one precision"}.get(role, "several")
            raise UserError(
                f"layer {name!r} is {role} with {len(precisions)} precisions; that role has {needs}"
            )
        pinned = line.get("pinned") is True
        return cls(name, role, precisions, pinned=pinned, winograd=how, **counts)


@dataclass(frozen=True)
class Plan:
    """What every layer of a network runs at.

    Two plans are equal if their layers are.

    Attributes:
        layers: convolutions (of any kind), fully connected layers, and modules that multiply
            activations, in execution order.
        image_shape: ``(C, H, W)`` of the images that counts are of; ``None``: the plan does not
            say.
    """

    layers: tuple[LayerPlan, ...]
    image_shape: tuple[int, ...] | None = field(default=None, compare=False)

    @property
    def routed(self) -> tuple[LayerPlan, ...]:
        return tuple(layer for layer in self.layers if layer.role == "routed")

    def to_json(self) -> dict[str, Any]:
        images = {} if self.image_shape is None else {"image_shape": list(self.image_shape)}
        return images | {"layers": [layer.to_json() for layer in self.layers]}

    @classmethod
    def from_json(cls, content: Any) -> Plan:
        """Reads what :meth:`to_json` made.

        Raises:
            UserError: for anything else; it names the first layer that is wrong.
        """
        lines = content.get("layers") if isinstance(content, dict) else None
        if not isinstance(lines, list) or not lines:
            raise UserError('a plan is {"layers": [...]} with a line for every layer')
        layers = tuple(map(LayerPlan.from_json, lines))
        names = [layer.name for layer in layers]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"the plan has layer {name!r} more than once")
        shape = content.get("image_shape")
        if shape is None:
            return cls(layers)
        sizes = shape if isinstance(shape, list) else []
        if len(sizes) != 3 or not all(type(size) is int and size > 0 for size in sizes):
            raise UserError(f"the plan's image_shape {shape!r} is not [channels, height, width]")
        return cls(layers, tuple(sizes))

    def dumps(self) -> str:
        """JSON with a line for every layer, to be edited by hand."""
        head, _, _ = json.dumps(self.to_json()).partition("[{")
        lines = ",\n  ".join(json.dumps(layer.to_json()) for layer in self.layers)
        return f"{head}[\n  {lines}\n]}}\n"

    def save(self, path: str | Path) -> None:
        Path(path).write_text(self.dumps(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Reads a file that :meth:`save` wrote, perhaps edited since.

        Raises:
            UserError: if it cannot be read, or is not a plan; it names the file and the layer.
        """
        try:
            return cls.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise UserError(f"plan {path} cannot be read: {error.strerror}") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"plan {path} is not JSON: {error}") from error
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def check_same(self, other: Plan) -> None:
        """Raises UserError with the first difference unless a run's plan is ``other``."""
        self.check_model(other)
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            if mine != theirs:
                raise UserError(
                    f"the run's plan has layer {mine.name!r} {mine.role} at {mine.widths}, this "
                    f"one has it {theirs.role} at {theirs.widths}: choose another folder "
                    "(hydra.run.dir)"
                )

    def for_images_of(self, other: Plan) -> Plan:
        """The same roles and precisions, counted on the images of another plan of the model.

        Warns if they are of another size.

        Args:
            other: a plan that was made of the model.

        Raises:
            PlanMismatchError: if the plans differ in more than the size of images.
        """
        self._check_counts(other, _COUNTS if self.image_shape == other.image_shape else _OF_MODEL)
        counted = (
            replace(mine, **{key: getattr(theirs, key) for key in _COUNTS})
            for mine, theirs in zip(self.layers, other.layers, strict=True)
        )
        plan = Plan(tuple(counted), other.image_shape)
        if plan != self:
            shapes = (self.image_shape, other.image_shape)
            old, new = ("{1} x {2}".format(*own) if own else "another size" for own in shapes)
            warnings.warn(
                f"the plan was made of images of {old} and these are of {new}: it is counted anew, "
                "roles and precisions stay",
                stacklevel=4,
            )
        return plan

    def check_model(self, other: Plan) -> None:
        """Raises PlanMismatchError with the first difference unless both are of one model.

        Images have to be of one size, too.

        Args:
            other: a plan that was made of the model.
        """
        self._check_counts(other, _COUNTS)

    def _check_counts(self, other: Plan, keys: Sequence[str]) -> None:
        for mine, theirs in zip(self.layers, other.layers, strict=False):
            if mine.name != theirs.name:
                raise PlanMismatchError(
                    f"it has layer {mine.name!r} where the model has {theirs.name!r}"
                )
            for key in keys:
                ours, own = getattr(mine, key), getattr(theirs, key)
                if ours != own:
                    raise PlanMismatchError(
                        f"layer {mine.name!r} has {key} {ours}, in the model {own}"
                    )
        if len(self.layers) != len(other.layers):
            longer, shorter = sorted((self.layers, other.layers), key=len, reverse=True)
            whose = "it" if longer is self.layers else "the model"
            raise PlanMismatchError(f"only {whose} has layer {longer[len(shorter)].name!r}")
