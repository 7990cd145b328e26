"""Whether a forward pass is being recorded, to be repeated on other images without this code.

What a recording keeps of a dynamic network is one batch's groups of images, so it would run every
other batch at the widths of the first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from dqnet.errors import UserError


def tracer() -> str | None:
    """What is tracing operations on tensors, by name; ``None``: nothing.

    ``torch.compile`` does not count: what it cannot repeat it runs as it is.
    """
    if torch.compiler.is_exporting():
        return "torch.export"
    if torch.compiler.is_compiling():
        return None
    if torch.jit.is_tracing():
        return "torch.jit.trace"
    return "make_fx" if get_proxy_mode() is not None else None


def captured(x: Tensor) -> bool:
    """Whether the operations on ``x`` go into a CUDA graph."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def refuse_symbols(x: Any) -> None:
    """Raises UserError for an ``x`` that stands for values, as when ``torch.fx`` traces."""
    if isinstance(x, fx.Proxy):
        raise UserError(
            "torch.fx cannot trace quantized layers, whose path depends on values: read features "
            "with forward hooks, or name QuantConv2d and QuantLinear as leaf modules"
        )


def refuse_recording(x: Tensor | fx.Proxy) -> None:
    """Raises UserError if operations on ``x`` at several precisions are being recorded."""
    refuse_symbols(x)
    by = tracer()
    if by is None and not torch.compiler.is_compiling() and captured(x):
        by = "a CUDA graph"
    if by is not None:
        raise UserError(
            f"{by} would record the widths of this batch and run every other batch at them: run "
            "the dynamic network as it is or with torch.compile, or record one of a single width"
        )


def refuse_scripting() -> None:
    """Raises the UserError for ``torch.jit.script``."""
    raise UserError(
        "torch.jit.script cannot compile quantized layers: use torch.compile, or torch.jit.trace "
        "for a network of a single width"
    )
