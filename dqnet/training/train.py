"""A training run, from a configuration to ``summary.json``. Read :func:`train` top to bottom.

Several processes all come this way, each with its share of every batch; only the main one writes,
which is seen to where files are written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from dqnet.calibration import calibrate
from dqnet.config import TrainConfig
from dqnet.data import load_data, loaders
from dqnet.measurement import Evaluation, evaluate
from dqnet.network import QuantizedModel
from dqnet.plan import Plan
from dqnet.processes import broadcast_buffers, from_main, is_main
from dqnet.ranges import check_ranges
from dqnet.runtime.devices import Device
from dqnet.runtime.files import read_json, remove, remove_unfinished, write_json, write_text
from dqnet.runtime.stop import Stopped, stop_request
from dqnet.training.checkpoint import check_same_data, load_checkpoint
from dqnet.training.learner import Learner
from dqnet.training.logging import RunLog, check_logger
from dqnet.training.metrics import epoch_line, epoch_metrics, run_summary
from dqnet.training.post_train import post_train
from dqnet.training.run_state import NotFiniteError, RunState, read_state
from dqnet.training.search import NO_SEARCH, searched_plan
from dqnet.training.tables import print_left_out, print_line, print_summary


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
    check_ranges(config)
    check_logger(config.logger)
    device = Device(config.trainer)
    found = from_main(lambda: read_state(folder, config, console))
    if found is not None and from_main((folder / "summary.json").exists):
        print_line(console, f"{folder} holds this run, complete; remove it to train again")
        summary = from_main(lambda: read_json(folder / "summary.json"))
        print_summary(console, summary)
        return summary

    splits = load_data(config.data)
    print_left_out(console, splits.left_out)
    data = loaders(
        splits, config.data, config.seed,
        device=device.torch_device, rank=device.rank, world_size=device.world_size,
        observed_images=config.quant.calibration.images, searched_images=config.search.images,
    )  # fmt: skip
    if found is not None:
        check_same_data(*found, splits, config.data.root, data.images)
    plan = None
    if config.search.name != NO_SEARCH:
        folder.mkdir(parents=True, exist_ok=True)
        plan = (
            searched_plan(config, folder, device, splits, data, console, train)
            if found is None
            else Plan.from_json(found[1]["plan"])
        )
    learner = Learner(config, device, splits, len(data.train), plan)

    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    run = RunState(folder, config, learner, splits, data)
    if found is not None:
        run.resume(*found, console)
        del found  # a second copy of all weights
    log = RunLog(run)
    _prepare(run, console)
    evaluation: Evaluation | None = None
    try:
        with stop_request() as stop:
            for epoch in range(run.done, config.trainer.epochs):
                data.train.set_epoch(epoch, skip=len(run.history))
                train_epoch(run, stop.until(data.train), console)
                # With no validation part the test part is measured, and nothing is chosen by it.
                held_out = stop.until(data.test if data.val is None else data.val)
                judged = learner.model if learner.ema is None else learner.ema.module
                broadcast_buffers(judged)  # running statistics, which training may leave different
                evaluation = evaluate(judged, held_out, device.images, device.autocast)

                metrics = epoch_metrics(run, evaluation)
                is_best = run.is_best(evaluation)
                log.append(metrics, evaluation)  # before what says that the epoch is done with
                run.next_epoch()
                if is_best:
                    run.save_best()  # before last.pt: see load_newest
                run.save()
                line = epoch_line(metrics, config.trainer.epochs, learner.objective)
                console.print(line, highlight=False, soft_wrap=True)
    except Stopped as stopped:
        with suppress(NotFiniteError):
            run.check_finite()
            run.save()
        log.finish(exit_code=stopped.status)
        raise

    if evaluation is None or data.val is not None:
        chosen = from_main(lambda: load_checkpoint(folder / "best.pt"))
        learner.model.load_state_dict(chosen["ema"] or chosen["model"])
        evaluation = evaluate(learner.model, data.test, device.images, device.autocast)
    summary = run_summary(run, evaluation)
    write_json(folder / "summary.json", summary)
    remove(folder / "previous.pt")
    log.finish(summary)
    print_summary(console, summary)
    return summary


def _prepare(run: RunState, console: Console) -> None:
    """Writes ``plan.json`` and calibrates; without epochs the network is then as it will be."""
    learner, epochs = run.learner, run.config.trainer.epochs
    model = learner.model
    if isinstance(model, QuantizedModel) and run.is_new:
        write_text(run.folder / "plan.json", model.plan.dumps())
        if epochs == 0 or run.config.quant.calibration.before_training:
            calibrate(model, _observed(run))
            post_train(run, _observed(run), console)
            if learner.pruning is not None:
                learner.pruning.restore()
    if epochs == 0:
        if learner.ema is not None:
            learner.ema.set(model)
        run.best = {"epoch": None, "rank": None}
        run.save_best()
        run.save()


def _observed(run: RunState) -> Iterator[Tensor]:
    return (run.learner.device.images(images) for images, _ in run.data.observed)


def train_epoch(run: RunState, batches: Iterable[tuple[Tensor, Tensor]], console: Console) -> None:
    """Makes the steps of an epoch that are left, one for each of ``batches``, and shows a bar.

    Raises:
        NotFiniteError: if the loss or a weight is not finite, by the end at the latest.
    """
    run.learner.model.train()
    pruning = run.learner.pruning
    if pruning is not None:
        pruning.before_epoch()
    trainer, steps = run.config.trainer, run.steps
    bar = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    hidden = not (trainer.progress and console.is_terminal)
    with Progress(*bar, console=console, transient=True, disable=hidden) as progress:
        title = f"epoch {run.done + 1}/{trainer.epochs}"
        task = progress.add_task(title, total=steps, completed=len(run.history))
        for images, labels in batches:
            update = run.done * steps + len(run.history)
            run.history.append(run.learner.step(update, images, labels))
            progress.advance(task)
            run.after_step()
    run.check_finite()
    if pruning is not None:
        pruning.after_epoch()
