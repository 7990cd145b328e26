"""What a training step of a static network costs by method, against full precision.

python -m benchmarks.static                                # about 3 minutes on 2 cores
python -m benchmarks.static --only affine --quick
python -m benchmarks.static --out results/static_speed_cpu.json

All networks are the same ResNet-20 with the same weights, on the same batch, and take turns.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import timm
import torch
from rich.console import Console
from torch import nn

import dqnet
from benchmarks.dynamic import SMALL, batch, training_step
from benchmarks.measure import Report, interleaved
from dqnet.layers import Winograd
from dqnet.runtime.devices import keep_freed_memory
from dqnet.standard_output import take_every_character

#: name → what dqnet.quantize is given
METHODS: dict[str, dict[str, Any]] = {
    "dorefa, 3 bits": {"widths": (3,), "quantizer": "dorefa"},
    "lsq, 3 bits": {"widths": (3,), "quantizer": "lsq"},
    "affine, 8 bits": {"widths": (8,), "quantizer": "affine"},
    "affine, 8 bits, norms folded": {
        "widths": (8,), "quantizer": "affine", "fold_batch_norm": "corrected",
    },
    "affine, 8 bits, Winograd F(2x2, 3x3)": {
        "widths": (8,), "quantizer": "affine", "winograd": Winograd(2),
    },
    "affine, 8 bits, Winograd F(4x4, 3x3)": {
        "widths": (8,), "quantizer": "affine", "winograd": Winograd(4),
    },
    "fixed_point, 8 bits": {"widths": (8,), "quantizer": "fixed_point"},
    "minifloat, e4m3": {"widths": ("we4m3ae4m3",), "quantizer": "minifloat"},
    "qnn, 2 bits": {"widths": (2,), "quantizer": "qnn"},
}  # fmt: skip
#: of the affine methods, multiplied directly: a Winograd convolution is simulated, not fast
GOAL = 1.25


def network(options: dict[str, Any], device: torch.device) -> nn.Module:
    """ResNet-20, converted as ``options`` say and calibrated; without any the float one."""
    name, size, _ = SMALL
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=10).to(device)
    if not options:
        return net.to(memory_format=torch.channels_last) if device.type == "cpu" else net
    sample = torch.zeros(1, 3, size, size, device=device)
    model = dqnet.quantize(net, sample, **copy.deepcopy(options))
    dqnet.calibrate(model, [batch(size, 32, device)[0]])
    return model


def run(names: list[str], repetitions: int, device: torch.device) -> Report:
    """Times every method of ``names``."""
    _, size, count = SMALL
    images, labels = batch(size, count, device)
    methods = {"float": {}, **{name: METHODS[name] for name in names}}
    steps = {
        name: training_step(network(options, device), images, labels)
        for name, options in methods.items()
    }
    t = interleaved(steps, repetitions, 3, device)
    report = Report()
    what = f"ResNet-20 training step, {count} images"
    report.timings(what, t)
    for name in (name for name in names if name.startswith("affine") and "Winograd" not in name):
        report.ratio(f"{what}: {name} / float", t[name].median / t["float"].median, GOAL)
    return report


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few repetitions")
    parser.add_argument("--only", default="", help="methods whose name contains this")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    arguments = parser.parse_args()
    take_every_character()
    keep_freed_memory()  # as training does
    names = [name for name in METHODS if arguments.only in name]
    report = run(names, 3 if arguments.quick else 15, torch.device(arguments.device))
    report.print(Console())
    report.write(arguments.out)


if __name__ == "__main__":
    main()
