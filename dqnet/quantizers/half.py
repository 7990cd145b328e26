"""Half precision, in which quantizers do not compute."""

from __future__ import annotations

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def widened(t: Tensor) -> Tensor:
    """``t``, in float32 if it was in half precision: that holds neither large codes nor scales."""
    return t.float() if t.dtype in HALF else t
