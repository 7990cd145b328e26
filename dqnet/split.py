"""The split point: the module after which layers are routed, and that a shared controller reads."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from dqnet.config import ControllerConfig
from dqnet.errors import UserError, unknown_name
from dqnet.rules import QUANTIZABLE
from dqnet.trace import Trace


@dataclass(frozen=True)
class SplitPoint:
    """Where a network splits.

    Attributes:
        name: of the module; ``None``: layers are routed from the start, or nowhere.
        found: whether it was found in what the model lists, and not named by the user.
    """

    name: str | None
    found: bool = False

    def check(self, model: nn.Module, trace: Trace, read: bool) -> None:
        """Raises UserError unless the module ran, and what a controller can ``read`` came out.

        That is feature maps or tokens; ``trace`` is a pass through the model.
        """
        if self.name is None:
            return
        try:
            _check(model, trace, self.name, read)
        except UserError as error:
            if not self.found:
                raise
            found = "the model lists it as its first stage, so name another with shared_until=..."
            raise UserError(f"{error}; {found}") from error


def _check(model: nn.Module, trace: Trace, name: str, read: bool) -> None:
    modules = [module for module, _ in model.named_modules() if module]
    if name not in modules:
        raise unknown_name("split point", name, modules)
    if name not in trace.shapes:
        raise UserError(f"split point {name!r} never returned a tensor when the model ran")
    if read and len(trace.shapes[name]) not in (3, 4):
        raise UserError(
            f"split point {name!r} returns shape {list(trace.shapes[name])}; the controller reads "
            "feature maps [N, C, H, W] or tokens [N, T, C]: choose an earlier module"
        )


def split_point(
    model: nn.Module, name: str | None, controller: ControllerConfig, dynamic: bool
) -> SplitPoint:
    """The split point of a model.

    Args:
        model: in full precision.
        name: a module's; ``"auto"``: the first stage after the stem, of those that the model lists;
            ``None``: there is none.
        controller: the kind that reads it, or does not.
        dynamic: whether something is routed.

    Raises:
        UserError: if there has to be one and none is named or found.
    """
    needed = controller.kind == "shared" and dynamic
    if name is not None and not isinstance(name, str):
        raise UserError(f"shared_until is a {type(name).__name__}; give the module's name, a str")
    if name is None and needed:
        raise UserError("a shared controller reads a module's output: name it in shared_until")
    if name != "auto":
        return SplitPoint(name)
    if controller.kind != "shared" or not dynamic:
        return SplitPoint(None)
    stages = listed_stages(model)
    if len(stages) < 2:
        raise UserError(
            "the model does not list its stages, so its split point cannot be found: "
            "name the last shared module with shared_until"
        )
    first = stages[0] if _is_stage(model, stages[0]) else stages[1]
    return SplitPoint(first, found=True)


def listed_stages(model: nn.Module) -> list[str]:
    """The modules that a model lists as its stages, as timm's models do; none if it lists none."""
    stages = getattr(model, "feature_info", None) or []
    # Some models hold a FeatureInfo object, which lists alike.
    return [stage["module"] for stage in getattr(stages, "info", stages)]


def _is_stage(model: nn.Module, name: str) -> bool:
    """Whether a module is a stage and not a stem, with which most models' lists begin."""
    module = dict(model.named_modules()).get(name, model)
    layers = [m for m in module.modules() if isinstance(m, QUANTIZABLE)]
    return module is not model and len(layers) > 1 and not name.startswith("stem")
