"""What training changes: a model, its optimizer, and what follows from them."""

from __future__ import annotations

from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dqnet.config import ControllerConfig, TrainConfig
from dqnet.data.splits import Splits
from dqnet.network import QuantizedModel, ScoredOutput
from dqnet.plan import Plan
from dqnet.processes import gathered
from dqnet.pruning import build_pruning
from dqnet.runtime.devices import Device
from dqnet.training.build import build_model, build_teacher
from dqnet.training.objective import Objective
from dqnet.training.optim import build_optimizer, build_schedule


class Learner:
    """A model ready to be trained, the same one every time for the same configuration.

    Args:
        config, device, splits: of the run.
        updates_per_epoch: steps.
        plan: what a search has found; ``None``: there was none.

    Attributes:
        model: the model itself.
        runner: what a training step calls: the model, wrapped for several processes and compiled.
        objective: the loss.
        teacher: the float network that the loss compares with; ``None``: there is none.
        optimizer: over the model's parameters.
        schedule: of the learning rate; ``None`` if nothing is trained.
        ema: the moving average of the model, if there is one.
        pruning: what makes zeros in both; ``None``: nothing does.
        updates: of the whole training.
    """

    def __init__(
        self,
        config: TrainConfig,
        device: Device,
        splits: Splits,
        updates_per_epoch: int,
        plan: Plan | None = None,
    ) -> None:
        self.config = config
        self.device = device
        self.updates = config.trainer.epochs * updates_per_epoch
        self.teacher = None
        if config.loss.distillation > 0:
            teacher = build_teacher(config.model, splits.num_classes, splits.image_shape)
            self.teacher = device.place(teacher)
        # After that, so that a run with a teacher begins as the one without.
        torch.manual_seed(config.seed)
        model = build_model(
            config.model, config.quant, splits.num_classes, splits.image_shape, plan=plan
        )
        self.model = device.place(model)
        self.objective = Objective(self.model, config.loss, searched=plan is not None)
        optimizer = build_optimizer(self.model, config.optim, config.quant.parameter_decay)
        self.schedule = None
        if self.updates:
            epochs = config.trainer.epochs
            self.schedule = build_schedule(optimizer, config.optim, epochs, updates_per_epoch)
        self.ema = None
        if config.trainer.ema is not None:
            self.ema = ModelEmaV3(self.model, decay=config.trainer.ema, use_warmup=True)
        average = None if self.ema is None else self.ema.module
        self.pruning = build_pruning(
            config.prune, self.model, average, splits.image_shape, self.updates
        )
        self.runner, self.optimizer = device.wrap(self.model), optimizer

    @property
    def lr(self) -> float:
        """The learning rate of the latest step."""
        return self.optimizer.param_groups[0]["lr"]

    def step(self, update: int, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """One update of the weights; returns the terms of the loss, scalars on the device.

        ``update`` is its number in the whole training, from 0; images ``[B, C, H, W]``, labels
        ``[B]``.
        """
        self.schedule.step_update(update)
        progress = update / self.updates
        set_temperature(self.model, self.config.quant.controller, progress)
        freeze_batch_norms(self.model, self.config.quant.freeze_batch_norm, progress)
        images, labels = self.device.images(images), labels.to(self.device.torch_device)
        teacher_logits = None
        if self.teacher is not None:
            with torch.no_grad(), self.device.autocast():
                teacher_logits = self.teacher(images)
        # Of all processes: the penalty of the global batch is not the mean of its parts' penalties.
        output, labels = ScoredOutput(*map(gathered, self.forward(images))), gathered(labels)
        if teacher_logits is not None:
            teacher_logits = gathered(teacher_logits)
        terms = self.objective.terms(output, labels, teacher_logits)
        self.optimizer.zero_grad()
        self.objective.total(terms, progress).backward()
        if self.pruning is not None:
            self.pruning.after_backward()
        if self.config.optim.clip_grad is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip_grad)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.model, step=update)
        if self.pruning is not None:
            self.pruning.after_step(update)
        return {name: term.detach() for name, term in terms.items()}

    def forward(self, images: Tensor) -> ScoredOutput:
        """Runs a batch in training; a float model routes nothing, ``[N, 0, 1]``."""
        low = self.device.low_precision
        if low is not None:
            images = images.to(low)
        with self.device.autocast():
            if isinstance(self.model, QuantizedModel):
                output = self.runner(images, with_scores=True)
            else:
                nothing = images.new_zeros(len(images), 0, 1)
                output = ScoredOutput(self.runner(images), nothing, nothing)
        return output if low is None else ScoredOutput(*(part.float() for part in output))

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on but the batch and the number of the update.

        The schedule, the annealing and the average's warm-up are functions of that number; bf16
        needs no gradient scaler. Of noise (the controller's, dropout) it is PyTorch's state on the
        CPU, and on the GPU in use; the data's order and augmentation follow from seed and epoch.
        """
        random = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_initialized():
            random["cuda"] = torch.cuda.get_rng_state()
        return {
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "pruning": None if self.pruning is None else self.pruning.state_dict(),
            "random": random,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what :meth:`state_dict` returned, or a checkpoint that holds it.

        Raises:
            UserError: if it is of a network with another plan.
        """
        if isinstance(self.model, QuantizedModel) and state.get("plan") is not None:
            Plan.from_json(state["plan"]).check_same(self.model.plan)
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.pruning is not None:
            self.pruning.load_state_dict(state["pruning"])
        torch.set_rng_state(state["random"]["cpu"])
        if "cuda" in state["random"] and torch.cuda.is_initialized():
            torch.cuda.set_rng_state(state["random"]["cuda"])

    def is_finite(self) -> bool:
        """Whether all weights and statistics are finite; waits for the device."""
        values = (v for v in self.model.state_dict().values() if v.is_floating_point())
        return bool(torch.stack([value.isfinite().all() for value in values]).all())


def set_temperature(model: nn.Module, config: ControllerConfig, progress: float) -> None:
    """Anneals τ geometrically from ``tau`` to ``tau_end``; ``progress`` is in [0, 1]."""
    controller = getattr(model, "controller", None)
    if controller is not None and config.tau_end is not None:
        controller.tau = config.tau * (config.tau_end / config.tau) ** progress


def freeze_batch_norms(model: nn.Module, share: float | None, progress: float) -> None:
    """From a share of the training on, batch norms of the backbone keep their statistics.

    They use the long-term ones as in evaluation; their scale and shift are still trained.
    """
    if share is None or progress < share:
        return
    backbone = model.backbone if isinstance(model, QuantizedModel) else model
    for module in backbone.modules():
        if isinstance(module, _BatchNorm):
            module.training = False
