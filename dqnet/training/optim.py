"""Optimizer and schedule, both timm's, and which parameters get which decay."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.optim.kron import Kron
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from dqnet.config import OptimConfig
from dqnet.errors import UserError, unknown_name
from dqnet.quantizers import Quantizer
from dqnet.ranges import check_ranges
from dqnet.state_dicts import added_by_conversion

#: timm's prefix: slow weights that follow an optimizer's
LOOKAHEAD = "lookahead_"
SCHEDULES = ("constant", "cosine", "step", "multistep")


def parameter_groups(
    model: nn.Module, config: OptimConfig, parameter_decay: float
) -> list[dict[str, Any]]:
    """Groups of trainable parameters, each with its weight decay and learning rate.

    Weight decay applies to weights of convolutions and fully connected layers alone: norms,
    biases and what conversion added have none, except those whose quantizer asks for a decay of
    its own (PACT's α). The controller's learning rate is scaled by ``controller_lr_scale``.
    """
    own_decay = {
        id(getattr(module, name))
        for module in model.modules()
        if isinstance(module, Quantizer)
        for name in module.decayed
    }
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        controller = name.startswith("controller.")
        if id(parameter) in own_decay:
            kind, decay = "quantizer", parameter_decay
        elif parameter.ndim < 2 or added_by_conversion(name):
            kind, decay = "no_decay", 0.0
        else:
            kind, decay = "decay", config.weight_decay
        scale = config.controller_lr_scale if controller else 1.0
        key = f"controller_{kind}" if controller else kind
        group = {"name": key, "params": [], "weight_decay": decay, "lr": config.lr * scale}
        groups.setdefault(key, group)["params"].append(parameter)
    return list(groups.values())


def build_optimizer(
    model: nn.Module, config: OptimConfig, parameter_decay: float
) -> torch.optim.Optimizer:
    """The optimizer over :func:`parameter_groups`.

    Raises:
        UserError: for an unknown optimizer, one that cannot train here, or a value out of range.
    """
    check_optimizer(config.name, next(model.parameters()).device)
    check_ranges(config, "optim")
    groups = parameter_groups(model, config, parameter_decay)
    try:
        return create_optimizer_v2(groups, opt=config.name, lr=config.lr, momentum=config.momentum)
    except Exception as error:  # whatever an optional package raises where it does not work
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"optim.name={config.name} cannot be used here: {line}") from error


def check_optimizer(name: str, device: torch.device) -> None:
    """Raises UserError unless timm has an optimizer of this name and it can train here."""
    base = name.removeprefix(LOOKAHEAD)
    if base not in list_optimizers():
        raise unknown_name("optimizer", name, list_optimizers())
    info = get_optimizer_info(base)
    # Where timm names a class instead of holding it, another package has it, for GPUs.
    package = info.opt_class.partition(".")[0] if isinstance(info.opt_class, str) else None
    if info.second_order:
        reason = "needs second derivatives, which quantizers do not have"
    elif info.opt_class is Kron:  # 10 GB for the largest layer of an 8-layer network
        reason = "takes gigabytes to precondition one convolution"
    elif package is not None and find_spec(package) is None:
        reason = f"needs the package {package}, which is not installed"
    elif package is not None and device.type != "cuda":
        reason = "runs on a GPU only (trainer.device=cuda)"
    else:
        return
    raise UserError(f"optim.name={name} {reason}: choose another optimizer, such as adamw")


def build_schedule(
    optimizer: torch.optim.Optimizer, config: OptimConfig, epochs: int, updates_per_epoch: int
) -> Scheduler:
    """A schedule stepped once per update; its state is a function of the update's number alone.

    Raises:
        UserError: for an unknown schedule, or a warm-up that is as long as the training.
    """
    if config.schedule not in SCHEDULES:
        raise unknown_name("schedule", config.schedule, SCHEDULES)
    total = epochs * updates_per_epoch
    warmup = round(config.warmup_epochs * updates_per_epoch)
    if not 0 <= warmup < total:
        raise UserError(
            f"optim.warmup_epochs {config.warmup_epochs:g} must be less than "
            f"trainer.epochs {epochs}"
        )
    is_constant = config.schedule == "constant"
    schedule, _ = create_scheduler_v2(
        optimizer,
        "step" if is_constant else config.schedule,
        num_epochs=total - warmup,
        warmup_epochs=warmup,
        warmup_lr=0.0,
        warmup_prefix=True,
        min_lr=config.min_lr,
        decay_epochs=max(1, round(config.decay_epochs * updates_per_epoch)),
        # timm decays one update before a milestone.
        decay_milestones=[round(m * updates_per_epoch) - warmup + 1 for m in config.milestones],
        decay_rate=1.0 if is_constant else config.decay_rate,
        step_on_epochs=False,
        updates_per_epoch=1,  # all of these are numbers of updates
    )
    return schedule
