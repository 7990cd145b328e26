"""Plans for EfficientNet-Lite0 at the cost of a uniform width, W4 to W8 with 8-bit inputs.

python -m benchmarks.imagenet_sample SOURCE PATH      # 200 training images, 800 to measure
python -m benchmarks.mixed_precision PATH plans --width w5a8
python train.py experiment=ptq_w8a8 model=efficientnet_lite0 data=shards data.root=PATH \\
    quant.plan=plans/size.json

The sample has one training image of each class, so that none can be held out: layers are judged by
the divergence from the float network on the images that inputs are calibrated on, which needs no
labels. It is measured once and serves every cost.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dqnet
from benchmarks.measure import configuration
from dqnet.costs.static import StaticCosts, static_cost
from dqnet.data import load_data, loaders
from dqnet.formats import Precision
from dqnet.network import QuantizedModel
from dqnet.search import Journal
from dqnet.training.build import build_model

WIDTHS = ("w4a8", "w5a8", "w6a8", "w7a8", "w8a8")
COSTS = ("size", "energy")


class Kept(Journal):
    """Keeps what was measured, so that a second search measures nothing again."""

    def __init__(self) -> None:
        self.state: Mapping[str, Any] = {}

    def read(self) -> dict[str, Any]:
        return dict(self.state)

    def write(self, state: Mapping[str, Any]) -> None:
        self.state = state


def network(root: str, widths: Sequence[str]) -> tuple[QuantizedModel, list[tuple[Tensor, Tensor]]]:
    """Every layer but the first and the last at any of the widths; the training images."""
    config = configuration(
        "experiment=ptq_w8a8", "model=efficientnet_lite0", "search=sensitivity", "data=shards",
        f"data.root={root}", f"quant.widths=[{','.join(widths)}]", "data.val_fraction=0",
    )  # fmt: skip
    splits = load_data(config.data)
    model = build_model(config.model, config.quant, splits.num_classes, splits.image_shape)
    observed = loaders(splits, config.data, 0, observed_images=len(splits.train)).observed
    return model, list(observed)


def find(root: str, folder: Path, width: str, images: int) -> None:
    """Writes a plan for each cost, and prints how long the search took."""
    model, batches = network(root, WIDTHS)
    dqnet.calibrate(model, [batch for batch, _ in batches])
    x, y = (torch.cat(part)[:images] for part in zip(*batches, strict=True))
    uniform, _ = network(root, [width])
    folder.mkdir(parents=True, exist_ok=True)
    journal = Kept()
    for cost in COSTS:
        bits = StaticCosts(model, cost).width(static_cost(uniform.layers, cost))
        began = time.perf_counter()
        plan = dqnet.find_plan(
            model, [(x, y)], "sensitivity", bits, cost, journal=journal, measure="kl"
        )
        seconds = time.perf_counter() - began
        plan.save(folder / f"{cost}.json")
        chosen = [layer.precisions[0] for layer in plan.layers if not layer.pinned]
        counts = {own: chosen.count(Precision.parse(own)) for own in WIDTHS}
        ratio = static_cost(plan.layers, cost) / static_cost(uniform.layers, cost)
        print(f"{cost}: {ratio:.4f} of {width}, {len(x)} images, {seconds:.0f} s, {counts}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mixed_precision", description=__doc__.splitlines()[0]
    )
    parser.add_argument("root", help="what benchmarks.imagenet_sample wrote")
    parser.add_argument("out", type=Path, help="a folder for size.json and energy.json")
    parser.add_argument("--width", default="w5a8", choices=WIDTHS, help="whose cost plans have")
    parser.add_argument("--images", type=int, default=200, help="training images to judge by")
    options = parser.parse_args()
    find(options.root, options.out, options.width, options.images)


if __name__ == "__main__":
    main()
