"""A search at the beginning of a run: held-out images, progress, and going on after a stop."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dqnet.calibration import calibrate
from dqnet.config import SearchConfig, TrainConfig
from dqnet.costs import find_cost
from dqnet.costs.base import read_options
from dqnet.data import Loaders, Splits
from dqnet.errors import UserError
from dqnet.network import QuantizedModel
from dqnet.plan import Plan
from dqnet.processes import launched
from dqnet.runtime.devices import Device
from dqnet.runtime.files import read_json, write_json
from dqnet.search import Journal, all_pairs, find_plan, find_search
from dqnet.search.base import Batch
from dqnet.search.trials import Operations, Trials
from dqnet.training.build import build_model
from dqnet.training.checkpoint import load_checkpoint
from dqnet.training.tables import print_line

NO_SEARCH, LEARNED = "none", "table"
#: in the run folder: where the search is, and what it found
FILE = "search.json"
#: in the run folder: the run whose scores search=table reads
LEARNED_IN = "search"


class ConsoleJournal(Journal):
    """Bars on a console, if it is a terminal, and no notes."""

    def __init__(self, console: Console, progress: bool = True) -> None:
        self._console = console
        self._hidden = not (progress and console.is_terminal)

    @contextmanager
    def progress(self, title: str, total: int, done: int = 0) -> Iterator[Callable[[], None]]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(
            *columns, console=self._console, transient=True, disable=self._hidden
        ) as progress:
            task = progress.add_task(title, total=total, completed=done)
            yield lambda: progress.advance(task)


class RunJournal(ConsoleJournal):
    """Notes in ``search.json``, of one configuration, and bars on the console."""

    def __init__(self, folder: Path, config: TrainConfig, console: Console) -> None:
        super().__init__(console, config.trainer.progress)
        self.folder = folder
        # As JSON keeps it.
        self._config = json.loads(json.dumps(asdict(config)))
        self._began = time.monotonic()
        self._notes = {"config": self._config, "state": {}, "seconds": 0.0}
        path = folder / FILE
        if path.exists() and (notes := read_json(path)).get("config") == self._config:
            self._notes = notes

    @property
    def seconds(self) -> float:
        """How long the search has taken, earlier starts included."""
        return self._notes["seconds"] + time.monotonic() - self._began

    def read(self) -> dict[str, Any]:
        return self._notes["state"]

    def write(self, state: Mapping[str, Any]) -> None:
        self._notes["state"] = dict(state)
        write_json(self.folder / FILE, self._notes | {"seconds": self.seconds})

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes the result, with the state that it came from."""
        content = {**result, "seconds": self.seconds, "state": self.read(), "config": self._config}
        write_json(self.folder / FILE, content)


def searched_plan(
    config: TrainConfig,
    folder: Path,
    device: Device,
    splits: Splits,
    data: Loaders,
    console: Console,
    train: Callable[[TrainConfig, Path, Console], Any],
) -> Plan:
    """What ``config.search`` finds, beginning where an earlier start was stopped.

    Args:
        config: of the run; ``quant`` says what the search chooses between, ``loss`` at what cost.
        folder: the run folder, where ``search.json`` is written.
        device, splits, data: of the run.
        console: where progress is shown.
        train: makes the training that ``search=table`` is.

    Raises:
        UserError: without a quantizer or held-out images, with several processes, and whatever
            :func:`dqnet.find_plan` refuses.
    """
    own = config.search
    options = dict(own.options)
    search = find_search(own.name, options)
    if config.quant.quantizer is None:
        raise UserError("a search chooses widths, and quant=none has none: choose a quantizer")
    if launched() > 1:
        raise UserError("a search is one process: start it with python, not torchrun")
    if data.searched is None:
        raise UserError("a search chooses by held-out images: set data.val_fraction, e.g. 0.1")
    journal = RunJournal(folder, config, console)
    model = _network(config, splits, search.chooses_apart)
    price = find_cost(config.loss.cost, read_options(config.loss.cost, config.loss.cost_options))
    if own.name == LEARNED:
        learned = replace(
            config,
            search=SearchConfig(),
            trainer=replace(config.trainer, epochs=own.epochs),
        )
        train(learned, folder / LEARNED_IN, console)
        state = load_checkpoint(folder / LEARNED_IN / "best.pt")
        model.load_state_dict(state["ema"] or state["model"])
    model = device.place(model)
    if own.name != LEARNED:
        calibrate(model, [device.images(images) for images, _ in data.observed])
    batches = [(device.images(x), y.to(device.torch_device)) for x, y in data.searched]
    # A table was trained for the target.
    bits = None if own.name == LEARNED else config.loss.target_bits
    plan = find_plan(model, batches, own.name, bits, price, journal=journal, **options)
    result = {"search": own.name} | _accuracies(model, batches, plan)
    journal.finish(result)
    print_line(
        console,
        f"search {own.name}: {result['top1']:.2f} % of {result['images']} held-out images, in full "
        f"precision {result['full_precision_top1']:.2f} %, in {journal.seconds:.0f} s",
    )
    return plan


def _network(config: TrainConfig, splits: Splits, chooses_apart: bool) -> QuantizedModel:
    """Of the widths that are searched, all pairs of their formats if need be."""
    parts = config.model, config.quant, splits.num_classes, splits.image_shape
    plan = build_model(*parts, load_weights=False).plan if chooses_apart else None
    torch.manual_seed(config.seed)  # the float network is the one that the run starts from
    return build_model(*parts, plan=None if plan is None else all_pairs(plan))


@torch.no_grad()
def _accuracies(model: QuantizedModel, batches: list[Batch], plan: Plan) -> dict[str, Any]:
    """On the held-out images: of the plan, and with all that was searched in full precision."""
    model.eval()
    trials = Trials(Operations(model, batches[0][0][:2]), batches)
    chosen_of = {layer.name: layer.precisions for layer in plan.layers}
    chosen = [model.precisions.index(chosen_of[own.name][0]) for own in model.routed_layers]
    images = len(trials.labels)
    return {
        "images": images,
        "top1": 100 * trials.hits(chosen) / images,
        "full_precision_top1": 100 * trials.hits(trials.full) / images,
    }
