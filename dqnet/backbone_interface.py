"""What other libraries ask a network for, timm's helpers first, answered by the backbone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.models import group_modules, group_parameters
from torch import nn

from dqnet.errors import UserError
from dqnet.state_dicts import BACKBONE_PREFIX, added_by_conversion


class BackboneInterface(nn.Module):
    """Public attributes that the wrapper lacks are those of ``self.backbone``.

    So ``pretrained_cfg``, ``num_classes``, ``feature_info`` or ``reset_classifier`` are the float
    model's. Where they name parameters, the names are those of the wrapper.
    """

    def __getattr__(self, name: str) -> Any:
        modules = self.__dict__.get("_modules", {})
        if name in modules:
            return modules[name]
        # ``module`` is what tools unwrap a network of their own by.
        if name.startswith("_") or name == "module" or "backbone" not in modules:
            return super().__getattr__(name)
        try:
            return getattr(modules["backbone"], name)
        except AttributeError:
            return super().__getattr__(name)  # which names this class

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay: the backbone's, and conversion's own.

        These are gains, shifts, steps and clipping values, as in train.py; PACT's paper has a decay
        of its own for α.
        """
        own = getattr(self.backbone, "no_weight_decay", set)()
        added = {name for name, _ in self.named_parameters() if added_by_conversion(name)}
        return {BACKBONE_PREFIX + name for name in own} | added

    @property
    def group_matcher(self) -> Callable[..., Callable[[str], int]]:
        """The backbone's, as a function from a parameter's or module's name to its group.

        Groups are numbered from 0, those near the image first. The controller is in the last one,
        with the classifier.

        Raises:
            AttributeError: if the backbone has none; timm then makes groups of its own.
        """
        of_backbone = self.backbone.group_matcher

        def group_matcher(coarse: bool = False) -> Callable[[str], int]:
            matcher = of_backbone(coarse=coarse)
            groups = group_modules(self.backbone, matcher, reverse=True)
            groups |= group_parameters(self.backbone, matcher, reverse=True)
            last = max(groups.values())
            return lambda name: groups.get(name.removeprefix(BACKBONE_PREFIX), last)

        return group_matcher

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """The backbone's, of a static network.

        Raises:
            UserError: in a dynamic network, whose layers have no routing when they are run again.
        """
        if enable and self.controller is not None:
            raise UserError(
                "a dynamic network cannot use gradient checkpointing inside itself: checkpoint it "
                "as a whole, torch.utils.checkpoint.checkpoint(model, images, use_reentrant=False)"
            )
        self.backbone.set_grad_checkpointing(enable)
