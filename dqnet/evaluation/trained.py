"""A trained network and its images, rebuilt from a checkpoint alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor, nn

from dqnet.cascade import Cascade
from dqnet.config import EvalConfig, TrainConfig
from dqnet.costs.network import check_target
from dqnet.data import Loader, Loaders, Splits, load_data, loaders
from dqnet.errors import UserError, unknown_name
from dqnet.evaluation.budget import Calibration, spend
from dqnet.evaluation.cascade import Batches, evaluate_passes
from dqnet.evaluation.cascade_file import loaded_cascade
from dqnet.measurement import Evaluation, evaluate
from dqnet.network import QuantizedModel
from dqnet.plan import Plan, PlanMismatchError
from dqnet.processes import launched
from dqnet.runtime.devices import Device
from dqnet.search.base import Batch
from dqnet.training.build import build_model
from dqnet.training.checkpoint import check_same_data, config_of, load_checkpoint
from dqnet.training.objective import Objective
from dqnet.training.search import NO_SEARCH
from dqnet.training.tables import print_left_out
from dqnet.training.weights import load_own_weights

PARTS = ("test", "val")
#: images that a routing is chosen by, as a search for a plan has them by default
SEARCHED = 2000


@dataclass(frozen=True)
class Trained:
    """What an evaluation starts from.

    Attributes:
        path: the checkpoint.
        content: what it holds; of a cascade beside that of the first network.
        sha256: of the file.
        config: the run's, with what the evaluation changes about it.
        device: where the model is.
        splits, data: its images.
        held_out: the part that is measured.
        model: with the checkpoint's weights; the moving average, where it has one.
        objective: the run's loss, which knows its target.
    """

    path: Path
    content: dict[str, Any]
    sha256: str
    config: TrainConfig
    device: Device
    splits: Splits
    data: Loaders
    held_out: Loader
    model: nn.Module
    objective: Objective

    @property
    def data_root(self) -> str | None:
        """The folder of the images, absolute; ``None`` for a data set without one."""
        root = self.config.data.root
        return None if root is None else str(Path(root).absolute())

    @property
    def calibration_part(self) -> str:
        """Where budgets and thresholds come from: ``val`` if there is one, never ``test``."""
        return "train" if self.data.val is None else "val"

    def measure(self, batches: Batches, again: Batches | None = None) -> Evaluation:
        """One pass over labelled images.

        Of a cascade there are more, over ``again``; ``None``: over ``batches``.
        """
        if isinstance(self.model, Cascade):
            return evaluate_passes(self.model, batches, again or batches, *self.how)
        return evaluate(self.model, batches, *self.how)

    @property
    def how(self) -> tuple[Callable[[Tensor], Tensor], Callable[[], Any]]:
        """What moves images to where the model is, and what makes the context of a precision."""
        return self.device.images, self.device.autocast

    def searched(self) -> list[Batch]:
        """Images and labels that a routing for all images is chosen by, about SEARCHED at most."""
        if self.data.searched is not None:
            given, step = self.data.searched, 1
        else:
            given = self.data.calibration
            # They may be in the order of their classes.
            step = max(1, round(len(given.order.indices) / SEARCHED))
        place = self.device.torch_device
        return [(self.device.images(x[::step]), y[::step].to(place)) for x, y in given]

    def calibrate(self) -> Calibration:
        """Of a dynamic network: one pass over the calibration images."""
        return Calibration(self.model, self.measure(self.data.calibration).scores)

    def check_request(self, curve: bool, controls: bool, budget: float | None) -> None:
        """Refuses early what cannot be measured.

        Raises:
            UserError: if something that needs a choice of widths is asked of a network without one,
                or a budget is out of its reach.
        """
        asked = {"curve": curve, "controls": controls, "budget": budget is not None}
        if isinstance(self.model, Cascade):
            if budget is not None:
                raise UserError("a budget is a network's: the passes of a cascade have their own")
            return
        names = [name for name, wanted in asked.items() if wanted]
        converted = isinstance(self.model, QuantizedModel)
        if names and not (converted and self.model.controller is not None):
            single = "every layer of this one has a single width"
            what = single if converted else "this one is in full precision"
            verb = "needs" if len(names) == 1 else "need"
            raise UserError(f"{' and '.join(names)} {verb} a dynamic network: {what}")
        if budget is not None:
            check_target(self.model, budget, "budget")


def load_trained(
    checkpoint: str | None, config: EvalConfig, console: Console, like: Trained | None = None
) -> Trained:
    """Rebuilds a network, or a cascade, and its data.

    Args:
        checkpoint: a file, or a run folder, meaning its ``best.pt``.
        config: which part is measured, and what to change about how the network was trained: data
            folder, batch size, device.
        console: is told of damaged images.
        like: whose images are taken, if they are the same.

    Raises:
        UserError: if none is named or it cannot be read, it is not of these data, the run kept no
            such part of them, or this is one of several processes.
    """
    if launched() > 1:
        raise UserError("eval.py is one process: start it with python, not torchrun")
    if checkpoint is None:
        raise UserError("name a checkpoint: python eval.py checkpoint=runs/NAME/best.pt")
    if config.split not in PARTS:
        raise unknown_name("split", config.split, PARTS)
    path = Path(checkpoint)
    path = path / "best.pt" if path.is_dir() else path
    content = load_checkpoint(path, cascades=True)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return _rebuilt(path, content, digest, config, console, like)


def _rebuilt(
    path: Path,
    content: dict[str, Any],
    digest: str,
    config: EvalConfig,
    console: Console,
    like: Trained | None,
) -> Trained:
    """From what a checkpoint, or one pass of a cascade in it, holds."""
    if "cascade" in content:
        first = _rebuilt(path, content["first"], digest, config, console, like)
        second = content.get("second")
        if second is not None:
            second = _rebuilt(path, second, digest, config, console, first).model
        model = loaded_cascade(content, first.model, second, path)
        return replace(first, model=model, content=first.content | content)
    content = {"ema": None, "wandb_id": None} | content
    run = config_of(content, path)
    for section in ("data", "trainer"):
        for key, value in vars(getattr(config, section)).items():
            if value is not None:
                setattr(getattr(run, section), key, value)

    device = Device(run.trainer)
    if like is not None and run.data == like.config.data:  # held-out images are of every seed
        splits, data = like.splits, like.data
    else:
        splits = load_data(run.data)
        print_left_out(console, splits.left_out)
        data = loaders(splits, run.data, run.seed, device=device.torch_device)
    check_same_data(path, content, splits, run.data.root)
    held_out = data.test if config.split == "test" else data.val
    if held_out is None:
        raise UserError("the run kept no validation part (data.val_fraction=0): use split=test")

    shape, classes = splits.image_shape, splits.num_classes
    plan = None if content.get("plan") is None else Plan.from_json(content["plan"])
    try:
        model = build_model(run.model, run.quant, classes, shape, load_weights=False, plan=plan)
    except PlanMismatchError as error:
        raise UserError(f"{path} is a checkpoint of another model: {error.difference}") from error
    load_own_weights(model, content, path)
    model = device.place(model)
    if content.get("budget_lambda"):
        spend(model, content["budget_lambda"])
    searched = run.search.name != NO_SEARCH
    objective = Objective(model, run.loss, content.get("cost_options", {}), searched)
    return Trained(path, content, digest, run, device, splits, data, held_out, model, objective)


def output_folder(config: EvalConfig, checkpoint: Path) -> Path:
    """Where an evaluation's files go, made if need be: the checkpoint's folder unless told."""
    folder = Path(config.output) if config.output is not None else checkpoint.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output folder {folder} cannot be made: {error.strerror}") from error
    return folder
