"""From rules to a plan: which layers run at what, by where they stand and how they are called."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from torch import nn

from dqnet.errors import UserError, unknown_name
from dqnet.formats import Precision, parse_precisions
from dqnet.layers.winograd import Winograd, why_direct
from dqnet.plan import FULL, LayerPlan, Plan
from dqnet.trace import LayerTrace, Trace

#: what a rule says of the layers that its pattern matches: "full" precision, one precision
#: (static), or several (routed)
Rule: TypeAlias = "str | int | Precision | Sequence[int | str | Precision]"

#: what is quantized or refused; other convolutions are counted and left as they are
QUANTIZABLE = (nn.Conv2d, nn.Linear)
#: shortcut projections, which every image runs at the same width
DEFAULT_STATIC = ("*downsample*", "*shortcut*")


@dataclass(frozen=True)
class Rules:
    """What a plan is made by. Patterns are those of a shell, matched against module names.

    Without a rule of its own a layer is static if it runs before the split point or is fully
    connected and sees one vector of an image (or its inputs are not one row for an image), and
    routed otherwise; with one width everything is static.

    Attributes:
        widths: the candidate precisions of routed layers.
        static_width: the precision of static layers; ``None``: the middle one of ``widths`` (the
            upper of the two middle ones).
        static: patterns of layers that are static at ``static_width``.
        first_last: what the first convolution, others that read the image, and the classifier run
            at: ``"full"`` or a precision.
        full_precision: patterns of layers in full precision. Given, it stands in the place of
            ``first_last="full"``.
        layers: pattern → rule. They go before all the above, and the last match wins.
    """

    widths: tuple[Precision, ...]
    static_width: Precision | None = None
    static: tuple[str, ...] = DEFAULT_STATIC
    first_last: str | Precision = FULL
    full_precision: tuple[str, ...] | None = None
    layers: Mapping[str, tuple[Precision, ...]] = field(default_factory=dict)

    @classmethod
    def parse(
        cls,
        widths: Sequence[int | str | Precision],
        static_width: int | str | Precision | None = None,
        static: Sequence[str] = DEFAULT_STATIC,
        first_last: Rule = FULL,
        full_precision: Sequence[str] | None = None,
        layers: Mapping[str, Rule] | None = None,
    ) -> Rules:
        """Rules as a user writes them: bits and names instead of precisions.

        Raises:
            UserError: for a bad precision, or a static width that one width contradicts.
        """
        own = parse_precisions(widths)
        fixed = None if static_width is None else parse_precisions([static_width])[0]
        if len(own) == 1 and fixed not in (None, own[0]):
            raise UserError(
                f"static_width {fixed} does nothing with widths ({own[0]},): "
                "with one width every layer is static at it"
            )
        if layers is not None and not isinstance(layers, Mapping):
            raise UserError(
                f"layers {layers!r} is not a table of pattern: rule, e.g. {{'*.conv3': 8}}"
            )
        by_pattern = {str(name): _parse_rule(name, rule) for name, rule in (layers or {}).items()}
        ends = _parse_rule("first_last", first_last)
        if len(ends) > 1:
            raise UserError(f"first_last {first_last!r} must be 'full' or one precision, e.g. 8")
        return cls(
            own,
            fixed,
            _patterns(static),
            ends[0] if ends else FULL,
            None if full_precision is None else _patterns(full_precision),
            by_pattern,
        )

    @property
    def middle(self) -> Precision:
        """What static layers run at."""
        return self.static_width or self.widths[len(self.widths) // 2]

    @property
    def dynamic(self) -> bool:
        """Whether some layer may be routed."""
        return any(len(own) > 1 for own in (self.widths, *self.layers.values()))


def plan_by_rules(model: nn.Module, trace: Trace, rules: Rules, split: str | None = None) -> Plan:
    """What every layer of a model runs at.

    Args:
        model: in full precision.
        trace: a pass through it.
        rules: see :class:`Rules`.
        split: the module up to which layers are static; ``None``: from the start they are routed.

    Raises:
        UserError: for a pattern that matches nothing.
    """
    names = [n for n in trace.layers if isinstance(model.get_submodule(n), QUANTIZABLE)]
    if rules.full_precision is not None:
        _check_patterns("full_precision", rules.full_precision, list(trace.layers))
    if rules.static != DEFAULT_STATIC:
        _check_patterns("static", rules.static, names)
    _check_patterns("quant.layers", rules.layers, names)
    first_last = _first_and_last(model, trace, names)

    def runs_at(name: str) -> tuple[tuple[Precision, ...], bool]:
        layer = trace.layers[name]
        precisions, pinned = (), False
        if name in names:
            precisions = _default(layer, model.get_submodule(name), trace, rules, split)
            if matches(name, rules.static):
                precisions = (rules.middle,)
            if name in first_last:
                if rules.first_last != FULL:
                    precisions, pinned = (rules.first_last,), True
                elif rules.full_precision is None:
                    precisions = ()
            if matches(name, rules.full_precision or ()):
                precisions, pinned = (), False
            for pattern, own in rules.layers.items():
                if fnmatchcase(name, pattern):
                    precisions, pinned = own, len(own) == 1
        return precisions, pinned

    return plan_of_trace(trace, runs_at)


def plan_of_trace(
    trace: Trace, runs_at: Callable[[str], tuple[tuple[Precision, ...], bool]]
) -> Plan:
    """The layers and products of a pass, in execution order.

    Args:
        trace: the pass.
        runs_at: from a layer's name to its precisions and whether they are pinned.
    """
    made = [
        (layer.order, _layer_plan(layer, *runs_at(name))) for name, layer in trace.layers.items()
    ]
    for name, product in trace.products.items():
        made.append((product.order, LayerPlan(name or "network", FULL, macs=product.macs)))
    ordered = tuple(layer for _, layer in sorted(made, key=lambda pair: pair[0]))
    return Plan(ordered, trace.image_shape)


#: why a layer of a dynamic network is no Winograd convolution
ROUTED = "routed among several precisions; give it one (quant.widths=[8])"


def with_winograd(plan: Plan, model: nn.Module, trace: Trace, how: Winograd | None) -> Plan:
    """The plan with its Winograd convolutions, and how often each of them multiplies.

    Warns, in one line, of quantized convolutions that cannot be one.

    Args:
        plan: of the model; a layer that is a Winograd convolution in it stays one.
        model: the model, or what became of it.
        trace: a pass through it.
        how: what every other quantized convolution becomes that can; ``None``: none does.

    Raises:
        UserError: if none can, one is routed, or the plan says so of a layer that cannot.
    """
    layers, direct = [], {}
    for layer in plan.layers:
        module = model.get_submodule(layer.name) if layer.name in trace.layers else None
        wanted = layer.winograd is not None
        if not wanted and (how is None or layer.role == FULL or not isinstance(module, nn.Conv2d)):
            layers.append(layer)
            continue
        reason = _why_not(layer, module)
        if reason is None:
            layer = winograd_layer(layer, layer.winograd or how, module, trace.layers[layer.name])
        elif wanted or reason == ROUTED:
            raise UserError(f"layer {layer.name!r} cannot be a Winograd convolution: {reason}")
        else:
            direct[layer.name] = reason
        layers.append(layer)
    if how is not None and not any(layer.winograd for layer in layers):
        raise UserError(
            "winograd: no quantized layer is a 3 x 3 convolution of stride 1 without dilation and "
            "groups, so that all are multiplied directly; leave it out (quant.winograd.tile=null)"
        )
    if direct:
        named = ", ".join(f"{name} ({reason})" for name, reason in direct.items())
        warnings.warn(f"winograd: multiplied directly as before: {named}", stacklevel=4)
    return replace(plan, layers=tuple(layers))


def _why_not(layer: LayerPlan, module: nn.Module | None) -> str | None:
    if not isinstance(module, nn.Conv2d):
        return "not a convolution"
    return why_direct(module) or {FULL: "full precision", "routed": ROUTED}.get(layer.role)


def winograd_layer(
    layer: LayerPlan, how: Winograd, conv: nn.Conv2d, trace: LayerTrace
) -> LayerPlan:
    """The layer as a Winograd convolution, with its counts."""
    tiles = sum(how.tiles(*size) for size in trace.sizes)
    return replace(
        layer,
        winograd=how,
        multiplications=tiles * how.taps * conv.in_channels * conv.out_channels,
        additions=tiles * how.additions(conv.in_channels, conv.out_channels),
    )


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a layer's name is like one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def before_split(layer: LayerTrace, trace: Trace, split: str | None) -> bool:
    """Whether a layer runs before the split point's output appears."""
    return split is not None and layer.order < trace.finished[split]


def _layer_plan(layer: LayerTrace, precisions: tuple[Precision, ...], pinned: bool) -> LayerPlan:
    role = {0: FULL, 1: "static"}.get(len(precisions), "routed")
    counts = {"macs": layer.macs, "weights": layer.weights}
    counts |= {"inputs": layer.inputs, "outputs": layer.outputs}
    return LayerPlan(layer.name, role, precisions, pinned=pinned, **counts)


def _default(
    layer: LayerTrace, module: nn.Module, trace: Trace, rules: Rules, split: str | None
) -> tuple[Precision, ...]:
    routable = not isinstance(module, nn.Linear) or (layer.by_image and not layer.one_vector)
    if len(rules.widths) > 1 and routable and not before_split(layer, trace, split):
        return rules.widths
    return (rules.middle,)


def _first_and_last(model: nn.Module, trace: Trace, names: list[str]) -> set[str]:
    """The first convolution, others that read the image, and the classifier."""
    convs = [n for n in names if isinstance(model.get_submodule(n), nn.Conv2d)]
    readers = [n for n in convs[1:] if trace.layers[n].reads_images]
    return {*convs[:1], *readers, *_classifiers(model, names)}


def _classifiers(model: nn.Module, names: list[str]) -> list[str]:
    """What timm says is the classifier, of which a network may have two or none; else the last."""
    if not hasattr(model, "get_classifier"):
        return names[-1:]
    heads = model.get_classifier()
    heads = heads if isinstance(heads, list | tuple) else [heads]
    inside = {m for head in heads if isinstance(head, nn.Module) for m in head.modules()}
    return [name for name in names if model.get_submodule(name) in inside]


def _parse_rule(name: Any, rule: Any) -> tuple[Precision, ...]:
    if rule == FULL:
        return ()
    several = isinstance(rule, Sequence) and not isinstance(rule, str)
    try:
        return parse_precisions(rule if several else [rule])
    except UserError as error:
        raise UserError(f"rule {name!r}: {error}; or 'full'") from error


def _patterns(patterns: Sequence[str]) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def _check_patterns(kind: str, patterns: Sequence[str], names: list[str]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise unknown_name(f"{kind} layer", pattern, names)
