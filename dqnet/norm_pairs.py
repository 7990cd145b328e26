"""Which batch norm normalises the output of which layer, and nothing else does."""

from __future__ import annotations

from dataclasses import dataclass, field

from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dqnet.dataflow import PLAIN_LAYERS, Call, Dataflow

#: norms that compute what their name says; timm's also applies dropout and an activation
BATCH_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    BatchNormAct2d,
)


@dataclass
class NormPairs:
    """Batch norms of a model.

    Attributes:
        norm_of: layer's name → the name of the norm that alone reads its output.
        reasons: name of every other norm → why it belongs to no layer, to follow "it".
        shared: of those, the ones that normalise the outputs of several layers.
    """

    norm_of: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    shared: list[str] = field(default_factory=list)


def norm_pairs(model: nn.Module, flow: Dataflow) -> NormPairs:
    """The pairs of a float model.

    Args:
        model: the model.
        flow: of a pass through it.
    """
    pairs = NormPairs()
    for name, norm in model.named_modules():
        if not isinstance(norm, _BatchNorm):
            continue
        calls = flow.calls[norm]
        sources = [flow.producers.get(call.inputs[0]) for call in calls]
        why = _why_not(norm, calls, sources, flow)
        if why is None:
            pairs.norm_of[sources[0].name] = name
            continue
        pairs.reasons[name] = why
        layers = {s.name for s in sources if s is not None and isinstance(s.module, PLAIN_LAYERS)}
        if len(layers) > 1:
            pairs.shared.append(name)
            pairs.reasons[name] = f"is shared by {' and '.join(map(repr, sorted(layers)))}"
    return pairs


def _why_not(
    norm: _BatchNorm, calls: list[Call], sources: list[Call | None], flow: Dataflow
) -> str | None:
    """Why a norm is not one layer's own; ``None`` if it is."""
    if type(norm) not in BATCH_NORMS:
        return f"is a {type(norm).__name__}, which may do more than normalise"
    if norm.running_mean is None:
        return "has no running statistics"
    if len(calls) != 1:
        return f"runs {len(calls)} times" if calls else "does not run"
    (call,), (source,) = calls, sources
    layer = None if source is None else source.module
    if type(layer) not in PLAIN_LAYERS:
        what = type(layer).__name__ if layer is not None else "no layer"
        return f"follows {what}, not a Conv2d or Linear"
    if len(flow.calls[layer]) > 1:
        return f"follows layer {source.name!r}, which runs {len(flow.calls[layer])} times"
    others = [user.name for user in flow.users[call.inputs[0]] if user is not call]
    if others:
        return f"follows layer {source.name!r}, whose output goes into {others[0]} as well"
    if "weight" not in layer._parameters:
        return f"follows layer {source.name!r}, which computes its weight"
    if isinstance(layer, nn.Linear) and len(call.shape) != 2:
        return f"follows layer {source.name!r}, but normalises another axis than its outputs"
    return None
