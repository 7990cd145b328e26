"""Weights by number format at equal bits, without any training: error, and accuracy if asked for.

python -m benchmarks.formats CHECKPOINT                        # a float ResNet-20 of train.py
python -m benchmarks.formats CHECKPOINT --data ROOT            # top-1 of ROOT/test, 32 × 32 images
python -m benchmarks.formats CHECKPOINT --out results/formats  # formats.csv, .png and .pdf there

The error of a layer is Σ(w − ŵ)² / Σw²; shown is the geometric mean over all convolutions but the
first. Top-1 is that of the network with these convolutions' weights quantized and nothing else.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import matplotlib
import pandas
import timm
import torch
from matplotlib import pyplot
from rich.console import Console
from scipy.stats import gmean
from torch import nn

import dqnet
from benchmarks.measure import configuration
from dqnet.data import load_data, loaders
from dqnet.data.loader import Loader
from dqnet.errors import UserError
from dqnet.measurement import evaluate
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
def quantized(weight: torch.Tensor, row: str, bits: int) -> torch.Tensor:
    """A weight ``[O, ...]`` as a row writes it."""
    name, options = METHODS[row]
    own = format_of(row, bits)
    quantizer, _ = build_quantizers(
        (name, "dorefa"), [own], [dqnet.Format(8)],
        signed=True, channels=len(weight), options=(options, {}),
    )  # fmt: skip
    quantizer.prepare(weight)
    return quantizer.eval()(weight, 0)


def relative_error(weight: torch.Tensor, row: str, bits: int) -> float:
    """Σ(w − ŵ)² / Σw² of a weight ``[O, ...]``."""
    error = quantized(weight, row, bits).double() - weight
    return (error.square().sum() / weight.double().square().sum()).item()


def float_network(
    checkpoint: Path, model_name: str, classes: int
) -> tuple[nn.Module, list[nn.Conv2d]]:
    """A network in evaluation mode, and all of its convolutions but the first."""
    model = timm.create_model(model_name, num_classes=classes)
    load_float_weights(model, checkpoint)
    return model.eval(), [m for m in model.modules() if isinstance(m, nn.Conv2d)][1:]


def measure(model: nn.Module, convs: list[nn.Conv2d], root: Path | None) -> pandas.DataFrame:
    """One row per method and number of bits: ``error``, and ``top1`` in percent with a data set."""
    test = None if root is None else _test_images(root)
    exact = [conv.weight.data for conv in convs]
    rows: list[dict[str, Any]] = []
    if test is not None:
        rows.append({"format": "float", "bits": 32, "error": 0.0, "top1": _top1(model, test)})
    for bits, method in itertools.product(BITS, METHODS):
        error = gmean([relative_error(weight, method, bits) for weight in exact])
        rows.append({"format": method, "bits": bits, "error": error})
        if test is not None:
            for conv, weight in zip(convs, exact, strict=True):
                conv.weight.data = quantized(weight, method, bits)
            rows[-1]["top1"] = _top1(model, test)
    for conv, weight in zip(convs, exact, strict=True):
        conv.weight.data = weight
    return pandas.DataFrame(rows)


def _test_images(root: Path) -> Loader:
    config = configuration("data=imagefolder", f"data.root='{root}'", "data.batch_size=500").data
    return loaders(load_data(config), config, 0).test


def _top1(model: nn.Module, test: Loader) -> float:
    return evaluate(model, test, lambda images: images, nullcontext).metrics["top1"]


def draw(table: pandas.DataFrame, folder: Path) -> None:
    """``formats.png`` and ``formats.pdf``: the error by bits, and beside it top-1."""
    matplotlib.use("Agg")
    measured = [name for name in ("error", "top1") if name in table]
    labels = {"error": "relative squared error", "top1": "top-1 (%)"}
    quantized_rows = table[table["format"] != "float"]
    figure, panels = pyplot.subplots(
        1, len(measured), figsize=(5 * len(measured), 4), squeeze=False
    )
    for axes, name in zip(panels[0], measured, strict=True):
        by_format = quantized_rows.pivot(index="bits", columns="format", values=name)
        by_format[list(METHODS)].plot(ax=axes, logy=name == "error", marker="o", legend=False)
        axes.set(xlabel="bits of a weight", ylabel=labels[name], xticks=sorted(BITS))
        if name == "top1":
            exact = table.loc[table["format"] == "float", name].item()
            axes.axhline(exact, color="black", linestyle=":", label="float")
    handles, names = panels[0][-1].get_legend_handles_labels()
    figure.legend(handles, names, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.tight_layout()
    for suffix in ("png", "pdf"):
        figure.savefig(folder / f"formats.{suffix}", bbox_inches="tight", dpi=150)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.formats", description=__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="of a float network")
    parser.add_argument("--model", default="resnet20_cifar", help="default: resnet20_cifar")
    parser.add_argument("--classes", type=int, default=10, help="default: 10")
    parser.add_argument("--data", type=Path, metavar="ROOT", help="images below ROOT/test/CLASS")
    parser.add_argument("--out", type=Path, help="a folder for the table and the figure")
    options = parser.parse_args(arguments)
    take_every_character()
    try:
        network = float_network(options.checkpoint, options.model, options.classes)
        table = measure(*network, options.data)
    except UserError as error:
        sys.exit(f"error: {error}")
    text = table.to_string(index=False, float_format="{:.4g}".format)
    Console(highlight=False).print(text)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        table.to_csv(options.out / "formats.csv", index=False)
        draw(table, options.out)


if __name__ == "__main__":
    main()
