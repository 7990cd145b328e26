"""A training run, from a configuration to ``summary.json``. Read :func:`train` top to bottom."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from timm.utils import ModelEmaV3
from torch import nn

from dqnet.config import ControllerConfig, TrainConfig
from dqnet.cost import FULL_PRECISION_BITS, controller_cost
from dqnet.data import load_data, loaders
from dqnet.engine.build import build_model
from dqnet.engine.checkpoint import check_same_run, load_checkpoint, save_checkpoint
from dqnet.engine.devices import Device
from dqnet.engine.evaluate import Evaluation, evaluate
from dqnet.engine.files import read_json, write_json
from dqnet.engine.logging import MetricsFile, WandbLogger, check_logger
from dqnet.engine.objective import Objective
from dqnet.engine.optim import build_optimizer, build_schedule
from dqnet.engine.tables import print_summary
from dqnet.errors import UserError
from dqnet.network import QuantizedModel, ScoredOutput
from dqnet.trace import trace_model

#: figures of every epoch's validation in metrics.jsonl, as val_NAME
PER_EPOCH = ("top1", "top5", "loss", "bit_flops", "bit_flops_std", "distinct_routings")
#: an epoch may be the best one if it costs at most this times the target
COST_TOLERANCE = 1.02


def train(config: TrainConfig, folder: Path, console: Console | None = None) -> dict[str, Any]:
    """Trains, or continues, or merely reports: whatever the run folder still lacks.

    Args:
        config: everything the run depends on.
        folder: the run folder; the files that DESIGN lists are written there.
        console: where progress and the final table are printed.

    Returns:
        The content of ``summary.json``.
    """
    console = console or Console()
    check_trainer(config)
    last_path, best_path, summary_path = (
        folder / name for name in ("last.pt", "best.pt", "summary.json")
    )
    state = read_state(folder, config)
    if state is not None and summary_path.exists():
        console.print(f"{folder} holds this run, complete; remove it to train again")
        summary = read_json(summary_path)
        print_summary(console, summary)
        return summary

    device = Device(config.trainer)
    splits = load_data(config.data)
    data = loaders(splits, config.data, config.seed, device=device.torch_device)

    torch.manual_seed(config.seed)
    model = build_model(config.model, config.quant, splits.num_classes, splits.image_shape)
    model = device.place(model)
    objective = Objective(model, config.loss)
    optimizer = build_optimizer(model, config.optim, config.quant.parameter_decay)
    epochs, updates = config.trainer.epochs, len(data.train)
    schedule = build_schedule(optimizer, config.optim, epochs, updates) if epochs else None
    ema = None
    if config.trainer.ema is not None:
        ema = ModelEmaV3(model, decay=config.trainer.ema, use_warmup=True)
    runner, optimizer = device.wrap(model, optimizer)

    folder.mkdir(parents=True, exist_ok=True)
    metrics_file = MetricsFile(folder / "metrics.jsonl")
    start, seconds, best = 0, 0.0, None
    if state is not None:
        start, seconds, best = state["epoch"], state["seconds"], state["best"]
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if ema is not None:
            ema.module.load_state_dict(state["ema"])
        set_random_state(state["random"])
        console.print(f"continuing {folder} after epoch {start} of {epochs}")
    metrics_file.keep_until(start)
    logger = None
    if config.logger.name == "wandb":
        run_id = state["wandb_id"] if state is not None else None
        logger = WandbLogger(config.logger, asdict(config), folder, run_id)

    def save(path: Path, epochs_done: int) -> None:
        content = {
            "config": asdict(config),
            "epoch": epochs_done,
            "model": model.state_dict(),
            "ema": None if ema is None else ema.module.state_dict(),
            "optimizer": optimizer.state_dict(),
            "random": random_state(),
            "seconds": seconds,
            "best": best,
            "num_classes": splits.num_classes,
            "class_names": list(splits.class_names),
            "image_shape": list(splits.image_shape),
            "wandb_id": None if logger is None else logger.run_id,
        }
        save_checkpoint(path, content)

    evaluation: Evaluation | None = None
    if epochs == 0:  # the model is measured as it is
        # Quantizers that set themselves from data do so from training data.
        data.train.set_epoch(0)
        evaluate(model, itertools.islice(data.train, 1), device.images, device.autocast)
        best = {"epoch": None, "rank": None}
        save(best_path, 0)
        save(last_path, 0)
    for epoch in range(start, epochs):
        began = time.perf_counter()
        data.train.set_epoch(epoch)
        terms = train_epoch(
            runner, model, data.train, objective, optimizer, schedule, ema, config, device, epoch,
            console,
        )  # fmt: skip
        # With no validation part the test part is measured, and nothing is chosen by it.
        judged = ema.module if ema is not None else model
        held_out = data.test if data.val is None else data.val
        evaluation = evaluate(judged, held_out, device.images, device.autocast)
        seconds += time.perf_counter() - began

        figures = evaluation.figures
        metrics = {
            "epoch": epoch,
            **{f"train_{name}": value for name, value in terms.items()},
            **{f"val_{key}": figures[key] for key in PER_EPOCH},
            "mean_width": figures["mean_width"],
            "lr": optimizer.param_groups[0]["lr"],
            "seconds": seconds,
        }
        rank = _rank(figures, objective.target)
        if best is None or data.val is None or rank > best["rank"]:
            best = {"epoch": epoch, "rank": rank}
        metrics_file.append(metrics)
        if best["epoch"] == epoch:
            save(best_path, epoch + 1)
        save(last_path, epoch + 1)
        line = _epoch_line(metrics, epochs, objective.target)
        console.print(line, highlight=False, soft_wrap=True)
        if logger is not None:
            logger.log(metrics, evaluation)

    if evaluation is None or data.val is not None:
        chosen = load_checkpoint(best_path)
        model.load_state_dict(chosen["ema"] or chosen["model"])
        evaluation = evaluate(model, data.test, device.images, device.autocast)
    summary = summarize(evaluation, model, objective.target, splits.image_shape) | {
        "target_bits": objective.target_bits,
        "epochs": epochs,
        "best_epoch": best["epoch"],
        "seconds": seconds,
        "seed": config.seed,
    }
    write_json(summary_path, summary)
    if logger is not None:
        logger.finish(summary)
    print_summary(console, summary)
    return summary


def read_state(folder: Path, config: TrainConfig) -> dict[str, Any] | None:
    """The last checkpoint of a run folder, if there is one.

    Raises:
        UserError: if it was trained with other settings.
    """
    path = folder / "last.pt"
    if not path.exists():
        return None
    state = load_checkpoint(path)
    check_same_run(path, state["config"], config)
    return state


def train_epoch(
    runner: nn.Module,
    model: nn.Module,
    batches: Any,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    ema: ModelEmaV3 | None,
    config: TrainConfig,
    device: Device,
    epoch: int,
    console: Console,
) -> dict[str, float]:
    """One pass over the training data; returns the means of the loss's terms.

    Args:
        runner: what is called: the model, wrapped for precision, processes and compilation.
        model: the model itself.

    Raises:
        UserError: if the loss is not finite.
    """
    model.train()
    total, history = config.trainer.epochs * len(batches), []
    with _progress(console, config.trainer.progress) as progress:
        task = progress.add_task(f"epoch {epoch + 1}/{config.trainer.epochs}", total=len(batches))
        for i, (images, labels) in enumerate(batches):
            update = epoch * len(batches) + i
            schedule.step_update(update)
            set_temperature(model, config.quant.controller, update / total)
            images, labels = device.images(images), labels.to(device.torch_device)

            terms = objective.terms(forward(runner, model, images), labels)
            optimizer.zero_grad()
            device.backward(objective.total(terms))
            if config.optim.clip_grad is not None:
                nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_grad)
            optimizer.step()
            if ema is not None:
                ema.update(model, step=update)

            history.append({name: term.detach() for name, term in terms.items()})
            progress.advance(task)
    means = {
        name: torch.stack([terms[name] for terms in history]).double().mean().item()
        for name in history[0]
    }
    if not math.isfinite(means["loss"]):
        raise UserError(
            f"the loss became {means['loss']} in epoch {epoch + 1}: lower optim.lr "
            f"({config.optim.lr:g}) or set optim.clip_grad"
        )
    return means


def forward(runner: nn.Module, model: nn.Module, images: torch.Tensor) -> ScoredOutput:
    """Runs a converted or a float model; a float model routes nothing, ``[N, 0, 1]``."""
    if isinstance(model, QuantizedModel):
        return runner(images, with_scores=True)
    nothing = images.new_zeros(len(images), 0, 1)
    return ScoredOutput(runner(images), nothing, nothing)


def set_temperature(model: nn.Module, config: ControllerConfig, progress: float) -> None:
    """Anneals τ geometrically from ``tau`` to ``tau_end``; ``progress`` is in [0, 1]."""
    controller = getattr(model, "controller", None)
    if controller is not None and config.tau_end is not None:
        controller.tau = config.tau * (config.tau_end / config.tau) ** progress


def summarize(
    evaluation: Evaluation,
    model: nn.Module,
    target: float | None,
    image_shape: tuple[int, int, int],
) -> dict[str, Any]:
    """The figures of ``summary.json`` and ``eval.json`` that follow from a model's evaluation."""
    figures = evaluation.figures | {"target_bit_flops": target}
    if isinstance(model, QuantizedModel):
        cost = controller_cost(model)
        return figures | {
            "params": cost.backbone_params,
            "macs": cost.backbone_macs,
            "controller_params": cost.params,
            "controller_macs": cost.macs,
        }
    first = next(model.parameters())
    macs = sum(
        layer.macs for layer in trace_model(model, first.new_zeros(1, *image_shape)).layers.values()
    )
    return figures | {
        "params": sum(p.numel() for p in model.parameters()),
        "macs": macs,
        "bit_flops_total": FULL_PRECISION_BITS**2 * macs,
    }


def random_state() -> dict[str, torch.Tensor]:
    """The states that noise is drawn from: PyTorch's, on the CPU and on the current GPU."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, torch.Tensor]) -> None:
    """Puts back what :func:`random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def check_trainer(config: TrainConfig) -> None:
    """Raises UserError for a trainer, logger or seed setting out of range."""
    if config.trainer.epochs < 0:
        raise UserError(f"trainer.epochs {config.trainer.epochs} must not be negative")
    ema = config.trainer.ema
    if ema is not None and not 0 < ema < 1:
        raise UserError(f"trainer.ema {ema} must be in (0, 1), or null for none")
    if not 0 <= config.seed < 2**63:
        raise UserError(f"seed {config.seed} must be from 0 to 2**63 - 1")
    check_logger(config.logger)


def _rank(figures: dict[str, Any], target: float | None) -> list[float]:
    """What makes an epoch the best: within the budget first, then accurate; else cheap."""
    if target is None or figures["bit_flops"] <= COST_TOLERANCE * target:
        return [1.0, figures["top1"]]
    return [0.0, -figures["bit_flops"]]


def _epoch_line(metrics: dict[str, Any], epochs: int, target: float | None) -> str:
    line = (
        f"epoch {metrics['epoch'] + 1:>3}/{epochs}  train loss {metrics['train_loss']:.4f}  "
        f"val top-1 {metrics['val_top1']:6.2f} %"
    )
    if "train_penalty" in metrics:
        line += (
            f"  Bit-FLOPs {metrics['val_bit_flops'] / target:.3f} of target"
            f" ± {metrics['val_bit_flops_std'] / target:.3f}"
            f"  {metrics['val_distinct_routings']} routings"
        )
    return f"{line}  {metrics['seconds']:.0f} s"


def _progress(console: Console, wanted: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (wanted and console.is_terminal),
    )
