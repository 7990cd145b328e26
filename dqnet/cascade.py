"""A confidence cascade as one network: images whose first answer is unsure get a second one.

The bits of an image then follow from what the network made of it and not from its early features
(Wang et al. 2017, *IDK cascades*, https://arxiv.org/abs/1706.00885). The second answer need not
replace the first: as a committee the two are averaged (Wang et al. 2022, *Wisdom of Committees*,
https://arxiv.org/abs/2012.01988). It need not come from another network either: the same one may
look again, at another view of the image (selective test-time augmentation: Mocerino et al. 2021,
*AdapTTA*).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dqnet.costs.network import bit_flops
from dqnet.errors import UserError, unknown_name
from dqnet.network import QuantizedModel
from dqnet.trace import evaluating

#: what the second pass sees of images ``[N, C, H, W]``
VIEWS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda images: images,
    "mirror": lambda images: images.flip(-1),
}
COMBINATIONS = ("committee", "replace")
#: temperatures that are tried: from answers that are all but certain to ones that are all but even
TEMPERATURES = (0.1, 10.0)


class CascadeOutput(NamedTuple):
    """What a cascade returns.

    Attributes:
        logits: ``[N, C]``: log-probabilities.
        passes: int64 ``[N]``: how often each image ran.
        bit_flops: float64 ``[N]``: the sum over its passes, of the quantized layers.
    """

    logits: Tensor
    passes: Tensor
    bit_flops: Tensor


class Cascade(nn.Module):
    """Two passes, of which the second is made by unsure images alone.

    Confidence is the largest of the probabilities softmax(z₁/T₁). Where it is at most the
    threshold, the answer is

        log p = w · log softmax(z₁/T₁) + (1 − w) · log softmax(z₂/T₂)

    for a committee, up to a constant, and the second term alone where it replaces the first.

    Args:
        first: a converted network, or a cascade.
        second: another one, or ``None``: the first one looks again.
        threshold: in [0, 1]: 0 lets no image run twice, 1 all.
        view: what the second pass sees: ``None``, the image as it is, or ``"mirror"``, for
            images whose mirror images are of the same class.
        combine: ``"committee"`` or ``"replace"``.

    Attributes:
        threshold, temperatures, weight: float64 tensors, in the state dict: ``[]``, T₁ and T₂
            ``[2]``, and w ``[]`` in [0, 1]. :meth:`fit` finds them.

    Raises:
        UserError: for a network in full precision, whose cost is not known; an unknown view or
            combination; a threshold out of range; or a second pass that repeats the first.
    """

    def __init__(
        self,
        first: nn.Module,
        second: nn.Module | None = None,
        threshold: float = 0.9,
        view: str | None = None,
        combine: str = "committee",
    ) -> None:
        super().__init__()
        check_settings(view, combine)
        if not 0 <= threshold <= 1:
            raise UserError(f"threshold {threshold} must be a confidence, in [0, 1]")
        for network in (first, second):
            if not isinstance(network, QuantizedModel | Cascade | None):
                raise UserError(
                    f"a cascade is of converted networks, whose cost is known; this is a "
                    f"{type(network).__name__}"
                )
        if second in (None, first) and view is None:
            raise UserError(
                "the second pass would repeat the first: give another network or view='mirror'"
            )
        self.first = first
        self.second = None if second is first else second
        self.view, self.combine = view, combine
        self.register_buffer("threshold", torch.tensor(threshold, dtype=torch.float64))
        self.register_buffer("temperatures", torch.ones(2, dtype=torch.float64))
        self.register_buffer("weight", torch.tensor(0.5, dtype=torch.float64))

    def forward(self, images: Tensor) -> CascadeOutput:
        """Classifies images ``[N, C, H, W]``; the unsure ones are run again as a smaller batch."""
        z, passes, cost = _answer(self.first, images)
        log_p = self.tempered(z, 0)
        unsure = (log_p.detach().exp().amax(1) <= self.threshold).nonzero().squeeze(1)
        if not len(unsure):
            return CascadeOutput(log_p, passes, cost)
        z, more_passes, more_cost = self.look_again(images[unsure])
        answers = self.combined(log_p[unsure], self.tempered(z, 1))
        return CascadeOutput(
            log_p.index_copy(0, unsure, answers),
            passes.index_add(0, unsure, more_passes),
            cost.index_add(0, unsure, more_cost),
        )

    def look_again(self, images: Tensor) -> CascadeOutput:
        """The second pass of images ``[N, C, H, W]``, alone."""
        return _answer(self.second_network, VIEWS[self.view](images))

    @property
    def second_network(self) -> nn.Module:
        """The network of the second pass."""
        return self.first if self.second is None else self.second

    def tempered(self, logits: Tensor, k: int) -> Tensor:
        """log softmax(z/T) of the first (k = 0) or the second pass (k = 1), ``[N, C]``."""
        return F.log_softmax(logits / self.temperatures[k].to(logits), dim=1)

    def combined(self, first: Tensor, second: Tensor) -> Tensor:
        """The log-probabilities ``[N, C]`` of both passes to those of the answer."""
        if self.combine == "replace":
            return second
        return F.log_softmax(first.lerp(second, 1 - self.weight.to(first)), dim=1)

    @torch.no_grad()
    def fit(self, batches: Iterable[tuple[Tensor, Tensor]], share: float | None = None) -> None:
        """Sets temperatures, weight and, if a share is given, the threshold.

        A cascade within this one is fitted before.

        Args:
            batches: pairs of images ``[B, C, H, W]`` and labels ``[B]`` that the networks were
                neither trained nor are measured on; in evaluation mode meanwhile.
            share: of these images that are to run twice, in [0, 1].

        Raises:
            UserError: if there is no image, or the share is out of range.
        """
        check_settings(self.view, self.combine, share)
        with evaluating(self):
            parts = [
                (_answer(self.first, images).logits, self.look_again(images).logits, labels)
                for images, labels in batches
            ]
        if not parts:
            raise UserError("a cascade is fitted on at least one batch of held-out images")
        first, second, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        self.fit_answers(first, second, labels.to(first.device), share)

    @torch.no_grad()
    def fit_answers(
        self, first: Tensor, second: Tensor, labels: Tensor, share: float | None = None
    ) -> None:
        """:meth:`fit` from what both passes answered.

        Each temperature has the least cross-entropy of its pass alone, over all images, the weight
        that of the committee, over the images that run twice.

        Args:
            first, second: logits ``[N, C]`` of the same images.
            labels: int64 ``[N]``.
            share: of these images that are to run twice, in [0, 1]; ``None``: the threshold stays.

        Raises:
            UserError: if the share is out of range.
        """
        check_settings(self.view, self.combine, share)
        logits = first.double(), second.double()
        for k, z in enumerate(logits):
            self.temperatures[k] = _least(
                lambda t, z=z: F.cross_entropy(z / t, labels), TEMPERATURES
            )
        first, second = (self.tempered(z, k) for k, z in enumerate(logits))
        confidence = first.exp().amax(1)
        if share is not None:
            self.threshold.copy_(threshold_of(confidence, share))
        unsure = confidence <= self.threshold
        if unsure.any():
            first, second, labels = first[unsure], second[unsure], labels[unsure]
            weight = _least(
                lambda w: F.cross_entropy(first * w + second * (1 - w), labels), (0.0, 1.0)
            )
            self.weight.fill_(weight)

    def described(self) -> dict[str, Any]:
        """Its settings and numbers, as files hold them."""
        return {
            "view": self.view,
            "combine": self.combine,
            "threshold": self.threshold.item(),
            "temperatures": self.temperatures.tolist(),
            "weight": self.weight.item(),
        }

    def extra_repr(self) -> str:
        return f"view={self.view}, combine={self.combine}, threshold={self.threshold:.4g}"


def check_settings(
    view: str | None, combine: str, share: float | None = None, prefix: str = ""
) -> None:
    """Raises UserError for a setting that does not exist.

    Args:
        view, combine: as of :class:`Cascade`.
        share: as of :meth:`Cascade.fit`.
        prefix: what the user writes before their names.
    """
    if view not in VIEWS:
        note = "(or none: the image as it is)"
        raise unknown_name(f"{prefix}view", view, filter(None, VIEWS), note)
    if combine not in COMBINATIONS:
        raise unknown_name(f"{prefix}combine", combine, COMBINATIONS)
    if share is not None and not 0 <= share <= 1:
        raise UserError(f"{prefix}share {share} must be a part of the images, in [0, 1]")


def threshold_of(confidence: Tensor, share: float) -> float:
    """The confidence that about ``share`` of the images do not exceed: of 0 no image, of 1 all.

    It lies in the middle between two images', where rounding moves none to the other side.

    Args:
        confidence: ``[N]``, each in (0, 1].
        share: in [0, 1].
    """
    count = round(share * len(confidence))
    if count == len(confidence):
        return 1.0
    if not count:
        return 0.0
    return confidence.sort().values[count - 1 : count + 1].mean().item()


def _answer(network: nn.Module, images: Tensor) -> CascadeOutput:
    """One pass, as if it were a cascade's."""
    if isinstance(network, Cascade):
        return network(images)
    logits, routing = network(images)
    passes = torch.ones(len(images), dtype=torch.int64, device=images.device)
    return CascadeOutput(logits, passes, bit_flops(network, routing))


def _least(function: Callable[[float], Tensor], bounds: tuple[float, float]) -> float:
    """Where a function of one number is least."""
    from scipy.optimize import minimize_scalar  # spared where nothing is fitted

    found = minimize_scalar(lambda v: function(v).item(), bounds=bounds, method="bounded")
    return float(found.x)
