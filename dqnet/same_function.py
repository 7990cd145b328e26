"""Changes of a network that must not change what it computes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dqnet.errors import UserError
from dqnet.trace import PROBE_SEED, evaluating

#: largest difference of the outputs in float64, relative to the largest output
TOLERANCE = 1e-7
IMAGES = 4


@torch.no_grad()
def change_exactly(
    model: nn.Module, sample_input: Tensor, change: Callable[[nn.Module], None], what: str
) -> None:
    """Changes a copy in float64, and the model itself only if the copy computes the same.

    Args:
        model: changed in place.
        sample_input: ``[N, C, H, W]``; only its shape, type and device are used.
        change: changes the model that it is given, in place.
        what: the change, as the subject of the message.

    Raises:
        UserError: if in evaluation it changes the outputs of random images; the model is then
            unchanged.
    """
    trial = copy.deepcopy(model).double()
    generator = torch.Generator().manual_seed(PROBE_SEED)
    images = torch.randn(IMAGES, *sample_input.shape[1:], generator=generator)
    images = images.to(sample_input.device, torch.float64)
    with evaluating(trial):
        before = trial(images)
        change(trial)
        trial.eval()  # with the modules that came in
        error = (trial(images) - before).abs().max()
    if not error <= TOLERANCE * before.abs().max():
        raise UserError(
            f"{what} changes what the network computes (by {error:.2g}, its largest output is "
            f"{before.abs().max():.2g}): it is left as it was"
        )
    change(model)
