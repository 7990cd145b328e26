"""The error of weights by number format at equal bits: a table, and a figure if asked for.

python -m benchmarks.formats CHECKPOINT                        # a float ResNet-20 of train.py
python -m benchmarks.formats CHECKPOINT --out results/formats  # formats.csv, .png and .pdf there

The error of a layer is Σ(w − ŵ)² / Σw² without any training; shown is the geometric mean over all
convolutions but the first.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import pandas
import timm
import torch
from rich.console import Console
from scipy.stats import gmean
from torch import nn

import dqnet
from dqnet.errors import UserError
from dqnet.quantizers import build_quantizers
from dqnet.standard_output import take_every_character
from dqnet.training.weights import load_float_weights

BITS = (8, 6, 4, 3)
MINIFLOATS = {8: ("e4m3", "e5m2"), 6: ("e3m2", "e2m3"), 4: ("e2m1", "e3m0"), 3: ("e1m1", "e2m0")}
#: row → quantizer and its options
METHODS = {
    "integer, per channel": ("symmetric", {}),
    "integer, least squared error": ("symmetric", {"observer": "mse"}),
    "small float, more exponent": ("minifloat", {}),
    "small float, more mantissa": ("minifloat", {}),
    "small float, blocks of 32": ("minifloat", {"granularity": "block"}),
    "NormalFloat, blocks of 64": ("nf4", {}),
    "power of two": ("power_of_two", {}),
    "codebook": ("codebook", {}),
}


def format_of(row: str, bits: int) -> dqnet.Format:
    """What a row has at so many bits; of two splits the one with more mantissa unless it says."""
    if METHODS[row][0] != "minifloat":
        return dqnet.Format(bits)
    splits = sorted(map(dqnet.Format.parse, MINIFLOATS[bits]), key=lambda own: own.exponent)
    return splits[-1 if "more exponent" in row else 0]


@torch.no_grad()
def relative_error(weight: torch.Tensor, row: str, bits: int) -> float:
    """Σ(w − ŵ)² / Σw² of a weight ``[O, ...]``."""
    name, options = METHODS[row]
    own = format_of(row, bits)
    quantizer, _ = build_quantizers(
        (name, "dorefa"), [own], [dqnet.Format(8)],
        signed=True, channels=len(weight), options=(options, {}),
    )  # fmt: skip
    quantizer.prepare(weight)
    error = quantizer.eval()(weight, 0).double() - weight
    return (error.square().sum() / weight.double().square().sum()).item()


def measure(checkpoint: Path, model_name: str, classes: int) -> pandas.DataFrame:
    """One row per method, one column per number of bits."""
    model = timm.create_model(model_name, num_classes=classes)
    load_float_weights(model, checkpoint)
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)][1:]
    errors = {
        bits: {row: gmean([relative_error(w, row, bits) for w in weights]) for row in METHODS}
        for bits in BITS
    }
    return pandas.DataFrame(errors).rename_axis("format")


def draw(table: pandas.DataFrame, folder: Path) -> None:
    """``formats.png`` and ``formats.pdf``."""
    matplotlib.use("Agg")
    axes = table.T.plot(logy=True, marker="o", figsize=(7, 4.5))
    axes.set(xlabel="bits of a weight", ylabel="relative squared error", xticks=BITS)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    for suffix in ("png", "pdf"):
        axes.figure.savefig(folder / f"formats.{suffix}", bbox_inches="tight", dpi=150)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.formats", description=__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="of a float network")
    parser.add_argument("--model", default="resnet20_cifar", help="default: resnet20_cifar")
    parser.add_argument("--classes", type=int, default=10, help="default: 10")
    parser.add_argument("--out", type=Path, help="a folder for the table and the figure")
    options = parser.parse_args(arguments)
    take_every_character()
    try:
        table = measure(options.checkpoint, options.model, options.classes)
    except UserError as error:
        sys.exit(f"error: {error}")
    Console(highlight=False).print(table.to_string(float_format="{:.3g}".format))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        table.to_csv(options.out / "formats.csv")
        draw(table, options.out)


if __name__ == "__main__":
    main()
