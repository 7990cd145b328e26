"""Can one network serve every uniform width as well as one of its own for each?

python -m benchmarks.every_width OUT data.root=PATH model.checkpoint_path=FLOAT/best.pt SETTING ...

All layers but the first and the last are routed, each width has batch norms of its own (AdaBits:
Jin et al. 2020, https://arxiv.org/abs/1912.09666; Any-Precision: Yu et al. 2021,
https://arxiv.org/abs/1911.07346), and LSQ steps of its own. In each training step a third of the
batch runs at each uniform width; in a quarter of the steps every layer of every image runs at a
random one. All are taught by the float network. Printed and written to OUT/every_width.json is
top-1 at each uniform width, held out after each epoch and of the test images at the end.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from rich.console import Console
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dqnet.cli import to_object
from dqnet.config import TrainConfig
from dqnet.errors import UserError
from dqnet.layers.quant_layer import quantized_layers
from dqnet.layers.router import Router
from dqnet.measurement import Evaluation, evaluate
from dqnet.network import QuantizedModel, ScoredOutput
from dqnet.runtime.files import write_json
from dqnet.structure import Structure
from dqnet.training import learner
from dqnet.training import train as loop
from dqnet.training.learner import Learner

CONF = Path(__file__).resolve().parent.parent / "conf"
SETTINGS = (
    *("experiment=cifar10_jpeg_dynamic", "quant=lsq", "quant.first_last=8"),
    *("quant.shared_until=null", "quant.controller.kind=table", "quant.width_affine=false"),
    *("loss.distillation=1.0", "loss.alpha=0", "loss.mutual_information=0"),
    *("data.val_fraction=0.1", "trainer.epochs=6"),
)
#: of the steps in which every layer of every image runs at a random width
RANDOM = 0.25


class WidthNorm(nn.Module):
    """A batch norm for each width of the routed layer before it."""

    def __init__(self, norm: _BatchNorm, router: Router, column: int, widths: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(deepcopy(norm) for _ in range(widths))
        self.router, self.column = router, column

    def forward(self, x: Tensor) -> Tensor:
        groups = self.router.column(self.column, len(x)).groups
        ordered = x if groups.order is None else x.index_select(0, groups.order)
        parts = [
            norm(ordered[start:end])
            for norm, (start, end) in zip(self.norms, groups.bounds, strict=True)
            if end > start
        ]
        y = torch.cat(parts)
        return y if groups.inverse is None else y.index_select(0, groups.inverse)


def split_norms(model: QuantizedModel) -> None:
    """Gives every routed layer's norm, known by its name as in ResNets, a norm for each width."""
    net, plan = model.backbone, model.plan
    for name, layer in quantized_layers(model).items():
        if layer.column is None:
            continue
        parent, _, leaf = name.rpartition(".")
        owner, leaf = net.get_submodule(parent), leaf.replace("conv", "bn")
        norm = getattr(owner, leaf)
        if not isinstance(norm, _BatchNorm):
            raise UserError(f"no batch norm is known to belong to {name}")
        count = len(layer.precisions)
        setattr(owner, leaf, WidthNorm(norm, layer.router, layer.column, count))
    model._structure = Structure(net, plan)  # norms are no part of the plan


def uniform(model: QuantizedModel, images: int, k: int) -> Tensor:
    """The routing ``[N, L, K]`` of all layers at the width of index k."""
    shape = images, len(model.routed_layers)
    return F.one_hot(torch.full(shape, k), len(model.precisions)).float()


def top1_at_widths(
    model: QuantizedModel, batches: Iterable[tuple[Tensor, Tensor]]
) -> dict[str, float]:
    """Top-1 in per cent at each uniform width."""
    right, count = torch.zeros(len(model.precisions), dtype=torch.int64), 0
    model.eval()
    with torch.no_grad():
        for images, labels in batches:
            count += len(labels)
            for k in range(len(right)):
                answer = model(images, uniform(model, len(images), k)).logits.argmax(1)
                right[k] += (answer == labels).sum()
    shares = (100 * right.double() / count).tolist()
    return {str(width): share for width, share in zip(model.widths, shares, strict=True)}


class EveryWidth(Learner):
    """Draws the routings of its training steps itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.generator = torch.Generator().manual_seed(self.config.seed)

    def forward(self, images: Tensor) -> ScoredOutput:
        model, count = self.model, len(images)
        widths, layers = len(model.precisions), len(model.routed_layers)
        of_image = torch.arange(count)[torch.randperm(count, generator=self.generator)] % widths
        chosen = of_image[:, None].expand(-1, layers)
        if torch.rand((), generator=self.generator) < RANDOM:
            chosen = torch.randint(widths, (count, layers), generator=self.generator)
        output = self.runner(images, F.one_hot(chosen, widths).to(images.dtype), with_scores=True)
        nothing = output.routing[:, :0]  # so that no price is put on what is drawn
        return ScoredOutput(output.logits, nothing, nothing)


def train(config: TrainConfig, folder: Path) -> list[dict[str, float]]:
    """Top-1 after each epoch on held-out images, and at the end on the test part."""
    found: list[dict[str, float]] = []
    build = learner.build_model

    def build_split(*args: Any, **kwargs: Any) -> nn.Module:
        model = build(*args, **kwargs)
        split_norms(model)
        model.controller.requires_grad_(False)
        return model

    def evaluated(model: nn.Module, batches: Any, *how: Any) -> Evaluation:
        batches = list(batches)
        found.append(top1_at_widths(model, batches))
        print(found[-1], flush=True)
        return evaluate(model, batches, *how)

    with (
        patch("dqnet.training.learner.build_model", build_split),
        patch.object(loop, "Learner", EveryWidth),
        patch.object(loop, "evaluate", evaluated),
    ):
        loop.train(config, folder, Console())
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.every_width", description=__doc__.splitlines()[0]
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the run's folder")
    parser.add_argument("settings", nargs="*", metavar="SETTING", help="as of train.py")
    options = parser.parse_args(arguments)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = to_object(TrainConfig, compose("train", [*SETTINGS, *options.settings]))
    try:
        found = train(config, options.out)
    except UserError as error:
        sys.exit(f"error: {error}")
    write_json(options.out / "every_width.json", {"held_out": found[:-1], "test": found[-1]})


if __name__ == "__main__":
    main()
