"""A fixed, stratified division of a labelled set into two parts."""

from __future__ import annotations

import torch
from sklearn.model_selection import train_test_split

from dqnet.errors import UserError


def stratified_split(labels: torch.Tensor, fraction: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the images to keep and of the images held out: always the same for one set.

    Args:
        labels: int64 ``[N]``.
        fraction: of the images to hold out, of each class alike, in (0, 1).

    Returns:
        Two ascending int64 tensors, together ``0 ... N - 1``.

    Raises:
        UserError: a part would have fewer images than there are classes.
    """
    try:
        kept, held_out = train_test_split(
            torch.arange(len(labels)).numpy(),
            test_size=fraction,
            stratify=labels.numpy(),
            random_state=0,
        )
    except ValueError as error:
        raise UserError(
            f"a fraction of {fraction:g} cannot be held out of {len(labels)} images in "
            f"{len(labels.unique())} classes: each part needs at least one image per class"
        ) from error
    return torch.from_numpy(kept).sort().values, torch.from_numpy(held_out).sort().values
