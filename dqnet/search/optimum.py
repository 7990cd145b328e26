"""The exact optimum of a sum over layers under a cost: an integer program."""

from __future__ import annotations

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor

from dqnet.errors import UserError


def cheapest_loss(losses: Tensor, prices: Tensor, to_spend: float) -> list[int]:
    """One precision for each layer: the least sum of losses at no more than ``to_spend``.

    min Σ Ω[l, k] · x[l, k] over binary x with Σₖ x[l, k] = 1 for every layer and
    Σ price[l, k] · x[l, k] ≤ to_spend (HAWQ-V2, Dong et al. 2020, https://arxiv.org/abs/1911.03852,
    state it; HAWQ-V3, https://arxiv.org/abs/2011.10680, solves it as an integer program).

    Args:
        losses: Ω, float64 ``[L, K]``.
        prices: float64 ``[L, K]``, infinite where a layer lacks a precision.
        to_spend: what may be spent.

    Returns:
        L indices among the K.

    Raises:
        UserError: if nothing costs so little.
    """
    layers, widths = losses.shape
    available = prices.isfinite().numpy().ravel()
    price = np.where(available, prices.numpy().ravel(), 0)
    unit = max(price.max(), 1e-300)  # so that the solver's tolerances are relative
    gain = np.where(available, losses.numpy().ravel(), 0)
    spread = np.abs(gain).max() or 1.0
    result = milp(
        gain / spread,
        integrality=np.ones_like(price),
        bounds=Bounds(0, available.astype(float)),
        constraints=[
            LinearConstraint(np.kron(np.eye(layers), np.ones(widths)), 1, 1),
            # A sum in another order may be a rounding error above the target.
            LinearConstraint(price / unit, -np.inf, to_spend / unit * (1 + 1e-9)),
        ],
        options={"mip_rel_gap": 0},
    )
    if result.x is None:
        raise UserError(f"no choice of widths costs as little as {to_spend:g}: {result.message}")
    return result.x.reshape(layers, widths).argmax(1).tolist()
