"""The state that noise is drawn from: the controller's Gumbel noise, dropout."""

from __future__ import annotations

import torch


def random_state() -> dict[str, torch.Tensor]:
    """PyTorch's, on the CPU and on the current GPU if one is in use.

    The data needs none: its order and augmentation follow from seed, epoch and image.
    """
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, torch.Tensor]) -> None:
    """Puts back what :func:`random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"])
