"""Bytes of a network on disk and its top-1, without any training: codebooks, SmartDeal, 8 bits.

python -m benchmarks.compression CHECKPOINT --data ROOT               # top-1 of ROOT/test, 32 × 32
python -m benchmarks.compression CHECKPOINT --data ROOT --out results/compression/one_shot.csv

Weights of all layers are pruned by magnitude, the same share in each, then quantized; inputs have 8
bits. ``sparse``, ``huffman`` and ``range`` are bytes of the whole file in each coding, ``float``
those of all numbers in float32. Energy is that of the cost model with zeros skipped, in millions of
16-bit multiply-accumulates.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas
import timm
import torch
from rich.console import Console
from torch import nn
from torch.nn.utils import prune

import dqnet
from benchmarks.measure import configuration
from dqnet.config import TrainConfig
from dqnet.costs.energy import Energy
from dqnet.costs.sparsity import measure_sparsity
from dqnet.costs.static import static_cost
from dqnet.data import Loaders, load_data, loaders
from dqnet.errors import UserError
from dqnet.export.packed import save_packed
from dqnet.export.stages import stages
from dqnet.measurement import evaluate
from dqnet.standard_output import take_every_character
from dqnet.training.build import build_model
from dqnet.training.weights import load_float_weights

CODINGS = ("sparse", "huffman", "range")
#: row → share of weights that are pruned, and settings
ROWS = {
    **{
        f"8 bits{pruned}": (share, ["quant=affine", "quant.widths=[8]", "quant.first_last=8"])
        for share, pruned in ((0.0, ""), (0.3, ", 30% pruned"))
    },
    "SmartDeal, 4 bits": (0.0, ["quant=smart_deal", "quant.first_last=w4a8"]),
    "SmartDeal, 3 bits": (
        0.0, ["quant=smart_deal", "quant.widths=[w3a8]", "quant.first_last=w3a8"],
    ),
    "SmartDeal, 4 bits, 30 % of rows zero": (
        0.0,
        ["quant=smart_deal", "quant.first_last=w4a8", "quant.weight.options.sparsity=0.3"],
    ),
    "SmartDeal, 4 bits, bases of 12 rows": (
        0.0, ["quant=smart_deal", "quant.first_last=w4a8", "quant.weight.options.rows=12"],
    ),
    **{
        f"codebook, {bits} bits, {share:.0%} pruned": (
            share,
            ["experiment=cifar10_jpeg_codebook", f"quant.widths=[w{bits}a8]",
             f"quant.first_last=w{bits}a8"],
        )
        for share in (0.3, 0.5)
        for bits in (3, 4, 5, 6)
    },
}  # fmt: skip


def pruned(checkpoint: Path, model: str, share: float) -> nn.Module:
    """A float network without the smallest weights of each layer."""
    network = timm.create_model(model)
    load_float_weights(network, checkpoint)
    for module in network.modules():
        if share and isinstance(module, nn.Conv2d | nn.Linear):
            prune.l1_unstructured(module, "weight", share)
            prune.remove(module, "weight")
    return network


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for the float network, then one for each of :data:`ROWS`."""
    data: Loaders | None = None
    with tempfile.TemporaryDirectory() as folder:
        for name, (share, overrides) in {"float": (0.0, ["quant=none"]), **ROWS}.items():
            if options.rows and not any(wanted in name for wanted in options.rows):
                continue
            start = Path(folder) / "start.pt"
            torch.save(pruned(options.checkpoint, options.model, share).state_dict(), start)
            config = configuration(
                *overrides, "data=imagefolder", f"data.root='{options.data}'", "data.flip=false",
                "data.crop_padding=0", "data.batch_size=256", f"model.name={options.model}",
            )  # fmt: skip
            config = replace(config, model=replace(config.model, checkpoint_path=str(start)))
            if data is None:
                splits = load_data(config.data)
                data = loaders(splits, config.data, 0)
            model = build_model(config.model, config.quant, splits.num_classes, splits.image_shape)
            yield {"network": name} | _measured(model.eval(), config, data, Path(folder))


def _measured(model: nn.Module, config: TrainConfig, data: Loaders, folder: Path) -> dict[str, Any]:
    energy = None
    if config.quant.quantizer is not None:
        images = [batch for batch, _ in _first(data, config.quant.calibration.images)]
        dqnet.calibrate(model, images)
        zeros = measure_sparsity(model, images)
        energy = static_cost(model.layers, Energy(sparsity=zeros)) / 1e6
    top1 = evaluate(model, data.test, lambda images: images, nullcontext).metrics["top1"]
    sizes: dict[str, int] = {}
    run = {"config": asdict(config), "num_classes": 10}
    for coding in CODINGS:
        path = folder / "packed.safetensors"
        save_packed(model, run, (3, 32, 32), path, coding)
        found = stages(model, path)
        sizes |= {"float": found["float"], coding: found["file"]}
    return {"top1": top1, "energy": energy} | sizes


def _first(data: Loaders, count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    seen = 0
    for images, labels in data.calibration:
        yield images, labels
        seen += len(images)
        if seen >= count:
            return


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compression", description=__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="of a float network")
    parser.add_argument("--data", type=Path, required=True, metavar="ROOT", help="ROOT/test/CLASS")
    parser.add_argument("--model", default="resnet20_cifar", help="default: resnet20_cifar")
    parser.add_argument("--rows", nargs="*", help="parts of rows' names; default: all rows")
    parser.add_argument("--out", type=Path, help="a CSV file")
    options = parser.parse_args(arguments)
    take_every_character()
    console = Console(highlight=False)
    rows = []
    try:
        for row in measure(options):
            console.print(" ".join(f"{key}={value}" for key, value in row.items()))
            rows.append(row)
    except UserError as error:
        sys.exit(f"error: {error}")
    table = pandas.DataFrame(rows)
    console.print(table.to_string(index=False, float_format="{:.4g}".format))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
