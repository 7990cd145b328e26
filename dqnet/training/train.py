"""A training run, from a configuration to ``summary.json``. Read :func:`train` top to bottom.

Several processes all come this way, each with its share of every batch; only the main one writes,
which is seen to where files are written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from dqnet.calibration import calibrate
from dqnet.config import ControllerConfig, TrainConfig
from dqnet.costs.controller import controller_cost
from dqnet.data import load_data, loaders
from dqnet.errors import UserError
from dqnet.formats import FULL_PRECISION_BITS
from dqnet.measurement import Evaluation, evaluate
from dqnet.network import QuantizedModel, ScoredOutput
from dqnet.processes import from_main, is_main, largest
from dqnet.runtime.devices import Device
from dqnet.runtime.files import read_json, remove, remove_unfinished, write_json, write_text
from dqnet.runtime.interval import CheckpointInterval
from dqnet.runtime.stop import Stopped, stop_request
from dqnet.trace import trace_model
from dqnet.training.checkpoint import (
    check_same_data,
    check_same_run,
    config_of,
    load_checkpoint,
    load_newest,
    save_checkpoint,
)
from dqnet.training.divergence import CHECK_EVERY, NotFiniteError, check_finite, explain
from dqnet.training.history import LossHistory
from dqnet.training.learner import Learner
from dqnet.training.logging import MetricsFile, WandbLogger, check_logger
from dqnet.training.tables import print_left_out, print_summary

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
    console.quiet |= not is_main()
    check_trainer(config)
    device = Device(config.trainer)
    last_path, previous_path, best_path, summary_path = (
        folder / name for name in ("last.pt", "previous.pt", "best.pt", "summary.json")
    )
    found = from_main(lambda: read_state(folder, config, console))
    if found is not None and from_main(summary_path.exists):
        line = f"{folder} holds this run, complete; remove it to train again"
        console.print(line, markup=False, soft_wrap=True)
        summary = from_main(lambda: read_json(summary_path))
        print_summary(console, summary)
        return summary

    interval = CheckpointInterval(config.trainer)
    splits = load_data(config.data)
    print_left_out(console, splits.left_out)
    data = loaders(
        splits, config.data, config.seed,
        device=device.torch_device, rank=device.rank, world_size=device.world_size,
        observed_images=config.quant.calibration.images,
    )  # fmt: skip
    path, state = found or (None, None)
    if state is not None:
        check_same_data(path, state, splits, config.data.root, data.images)
    learner = Learner(config, device, splits, len(data.train))
    model, target, epochs = learner.model, learner.objective.target, config.trainer.epochs

    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    metrics_file = MetricsFile(folder / "metrics.jsonl")
    done, history = 0, LossHistory(len(data.train))  # epochs, and steps of the one after them
    seconds, best, run_id = 0.0, None, None
    if state is not None:
        learner.load_state_dict(state)
        done, history = state["epoch"], LossHistory(len(data.train), state.get("history"))
        seconds, best, run_id = state["seconds"], state["best"], state["wandb_id"]
        console.print(
            f"continuing {path} after epoch {done} of {epochs}"
            + (f" and {len(history)} of {len(data.train)} steps" if len(history) else ""),
            markup=False,
            soft_wrap=True,
        )
    del found, state  # a second copy of all weights
    metrics_file.keep_until(done)
    logger = None
    if config.logger.name == "wandb" and is_main():
        logger = WandbLogger(config.logger, asdict(config), folder, run_id)
        logger.continue_after(done)
    began = time.perf_counter() - seconds

    def save(path: Path, previous: Path | None = None) -> None:
        content = {
            "config": asdict(config),
            "epoch": done,
            "step": len(history),
            "history": history.state_dict(),
            **learner.state_dict(),
            "seconds": time.perf_counter() - began,
            "best": best,
            "num_classes": splits.num_classes,
            "class_names": list(splits.class_names),
            "image_shape": list(splits.image_shape),
            "images": data.images,
            "wandb_id": None if logger is None else logger.run_id,
            "plan": model.plan.to_json() if isinstance(model, QuantizedModel) else None,
        }
        save_checkpoint(path, content, previous)

    def save_last() -> None:
        save(last_path, previous_path)
        interval.restart()

    if path is not None and path.name == best_path.name:
        save_last()  # which the crash prevented

    def after_step() -> None:
        due = bool(largest(interval.step()))  # clocks differ from process to process
        if due or len(history) % CHECK_EVERY == 0:
            check_finite(learner, history)
        if due:
            save_last()

    evaluation: Evaluation | None = None
    calibration = config.quant.calibration
    starting = done == 0 and not len(history)
    if isinstance(model, QuantizedModel) and starting:
        write_text(folder / "plan.json", model.plan.dumps())
        if epochs == 0 or calibration.before_training:
            calibrate(model, (device.images(images) for images, _ in data.observed))
    if epochs == 0:  # the model is measured as it is
        if learner.ema is not None:
            learner.ema.set(model)
        best = {"epoch": None, "rank": None}
        save(best_path)
        save_last()
    try:
        with stop_request() as stop:
            for epoch in range(done, epochs):
                data.train.set_epoch(epoch, skip=len(history))
                train_epoch(learner, stop.until(data.train), epoch, history, after_step, console)
                check_finite(learner, history)
                # With no validation part the test part is measured, and nothing is chosen by it.
                judged = device.broadcast_buffers(
                    model if learner.ema is None else learner.ema.module
                )
                held_out = stop.until(data.test if data.val is None else data.val)
                evaluation = evaluate(judged, held_out, device.images, device.autocast)

                figures = evaluation.metrics
                metrics = {
                    "epoch": epoch,
                    **{f"train_{name}": value for name, value in history.means().items()},
                    **{f"val_{key}": figures[key] for key in PER_EPOCH},
                    "mean_width": figures["mean_width"],
                    "lr": learner.lr,
                    "seconds": time.perf_counter() - began,
                }
                rank = _rank(figures, target)
                if best is None or data.val is None or rank > best["rank"]:
                    best = {"epoch": epoch, "rank": rank}
                # Before the checkpoint, which says that the epoch is done with.
                metrics_file.append(metrics)
                if logger is not None:
                    logger.log(metrics, evaluation)
                done, history = epoch + 1, LossHistory(len(data.train))
                if best["epoch"] == epoch:
                    save(best_path)  # before last.pt: see load_newest
                save_last()
                line = _epoch_line(metrics, epochs, target)
                console.print(line, highlight=False, soft_wrap=True)
    except NotFiniteError:
        good = from_main(lambda: load_newest(folder))
        failed = done * len(data.train) + len(history)
        message = explain(config, device, splits, data.train, good, failed, train_step)
        raise UserError(message) from None
    except Stopped as stopped:
        with suppress(NotFiniteError):
            check_finite(learner, history)
            save_last()
        if logger is not None:
            logger.stop(stopped.status)
        raise

    if evaluation is None or data.val is not None:
        chosen = from_main(lambda: load_checkpoint(best_path))
        model.load_state_dict(chosen["ema"] or chosen["model"])
        evaluation = evaluate(model, data.test, device.images, device.autocast)
    summary = summarize(evaluation, model, target, splits.image_shape) | {
        "target_bits": learner.objective.target_bits,
        "epochs": epochs,
        "best_epoch": best["epoch"],
        "seconds": time.perf_counter() - began,
        "seed": config.seed,
        "damaged_images": len(splits.damaged),
    }
    write_json(summary_path, summary)
    remove(previous_path)
    if logger is not None:
        logger.finish(summary)
    print_summary(console, summary)
    return summary


def read_state(
    folder: Path, config: TrainConfig, console: Console | None = None
) -> tuple[Path, dict[str, Any]] | None:
    """The newest good checkpoint of a run folder and its path, if there is one.

    Args:
        folder: the run folder.
        config: of the run that is to be in it.
        console: is told if the newest checkpoint is damaged.

    Raises:
        UserError: if the folder's run has other settings, or no checkpoint can be read, or it is
            complete and has none any more.
    """

    def warn(message: str) -> None:
        if console is not None:
            console.print(f"warning: {message}", markup=False, soft_wrap=True)

    found = load_newest(folder, warn)
    if found is not None:
        path, state = found
        check_same_run(path, asdict(config_of(state, path)), config)
    elif (folder / "summary.json").exists():
        raise UserError(
            f"{folder} holds the summary of a complete run and none of its checkpoints: "
            "choose another folder (hydra.run.dir), or remove that one"
        )
    return found


def train_epoch(
    learner: Learner,
    batches: Iterable[tuple[Tensor, Tensor]],
    epoch: int,
    history: LossHistory,
    after_step: Callable[[], None],
    console: Console,
) -> None:
    """One pass over the training data, or what is left of it.

    Args:
        learner: what is trained.
        batches: images ``[B, C, H, W]`` and labels ``[B]`` of the steps that are left.
        epoch: from 0.
        history: of the steps that are done; every step is added to it.
        after_step: called after every step.
        console: where progress is shown.
    """
    learner.model.train()
    trainer, steps = learner.config.trainer, history.length
    with _progress(console, trainer.progress) as progress:
        task = progress.add_task(
            f"epoch {epoch + 1}/{trainer.epochs}", total=steps, completed=len(history)
        )
        for images, labels in batches:
            update = epoch * steps + len(history)
            history.append(train_step(learner, update, images, labels))
            progress.advance(task)
            after_step()


def train_step(learner: Learner, update: int, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """One update of the weights; returns the terms of the loss, scalars on the device.

    Args:
        learner: what is trained.
        update: the step's number in the whole training, from 0.
        images: ``[B, C, H, W]``.
        labels: ``[B]``.
    """
    config, device, model = learner.config, learner.device, learner.model
    learner.schedule.step_update(update)
    progress = update / learner.updates
    set_temperature(model, config.quant.controller, progress)
    images, labels = device.images(images), labels.to(device.torch_device)

    # Of all processes: the penalty of the global batch is not the mean of its parts' penalties.
    output, labels, teacher_logits = device.gather(
        forward(learner.runner, model, images), labels, learner.teach(images)
    )
    terms = learner.objective.terms(output, labels, teacher_logits)
    learner.optimizer.zero_grad()
    device.backward(learner.objective.total(terms, progress))
    if config.optim.clip_grad is not None:
        nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_grad)
    learner.optimizer.step()
    if learner.ema is not None:
        learner.ema.update(model, step=update)
    return {name: term.detach() for name, term in terms.items()}


def forward(runner: nn.Module, model: nn.Module, images: Tensor) -> ScoredOutput:
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
    figures = evaluation.metrics | {"target_bit_flops": target}
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


def check_trainer(config: TrainConfig) -> None:
    """Raises UserError for a trainer, logger or seed setting out of range."""
    if config.trainer.epochs < 0:
        raise UserError(f"trainer.epochs {config.trainer.epochs} must not be negative")
    ema = config.trainer.ema
    if ema is not None and not 0 < ema < 1:
        raise UserError(f"trainer.ema {ema} must be in (0, 1), or null for none")
    if not 0 <= config.seed < 2**63:
        raise UserError(f"seed {config.seed} must be from 0 to 2**63 - 1")
    if config.quant.calibration.images < 1:
        raise UserError(
            f"quant.calibration.images {config.quant.calibration.images} must be at least 1"
        )
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
