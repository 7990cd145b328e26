"""What removing filters makes of the time of an evaluation, on one core.

python -m benchmarks.smaller                                # about a minute
python -m benchmarks.smaller --quick
python -m benchmarks.smaller --out results/smaller_cpu.json

ResNet-56 as it is and without 30, 40 and 50 % of the inner filters of its blocks, in float32, in
turns. Times are those of the processor, so that other work on the core counts little. The goal of
each ratio of times is the ratio of the multiply-accumulates.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import timm
import torch
from rich.console import Console
from torch import nn

from benchmarks.measure import Report, interleaved
from dqnet.config import PruneConfig
from dqnet.pruning import build_pruning
from dqnet.pruning.remove import logits_difference, remove_filters
from dqnet.standard_output import take_every_character
from dqnet.trace import trace_model

NETWORK, SHAPE = "resnet56_cifar", (3, 32, 32)
RATIOS = (0.3, 0.4, 0.5)
#: images of a batch → repetitions
BATCHES = {1: 40, 128: 8}


def networks(console: Console) -> dict[float, nn.Module]:
    """By the share of filters that are gone."""
    found: dict[float, nn.Module] = {}
    image = torch.zeros(1, *SHAPE)
    for ratio in (0.0, *RATIOS):
        torch.manual_seed(0)
        network = timm.create_model(NETWORK, num_classes=10).eval()
        if ratio:
            config = PruneConfig(name="soft_filters", ratio=ratio)
            build_pruning(config, network, None, SHAPE, updates=1).after_epoch()
            smaller, _ = remove_filters(network, image)
            difference, largest = logits_difference(network, smaller, image)
            console.print(f"{ratio:.0%}: logits differ by {difference:.2g} of {largest:.2g}")
            network = smaller
        found[ratio] = network.to(memory_format=torch.channels_last)
    return found


def macs(network: nn.Module) -> int:
    """Multiply-accumulates for one image."""
    trace = trace_model(network, torch.zeros(1, *SHAPE), signs=False)
    return sum(layer.macs for layer in trace.layers.values())


@torch.inference_mode()
def run(repetitions: dict[int, int], console: Console) -> Report:
    """Times every network with batches of every size."""
    with torch.inference_mode(False):
        found = networks(console)
        shares = {ratio: macs(network) / macs(found[0.0]) for ratio, network in found.items()}
    report = Report()
    for size, count in repetitions.items():
        images = torch.randn(size, *SHAPE).to(memory_format=torch.channels_last)
        names = {
            ratio: f"{ratio:.0%} removed, {share:.1%} of MACs" for ratio, share in shares.items()
        }
        steps = {names[ratio]: partial(network, images) for ratio, network in found.items()}
        what = f"{size} image{'s' if size > 1 else ''}"
        timings = interleaved(steps, count, 2, torch.device("cpu"), time.process_time)
        report.timings(what, timings)
        for ratio in RATIOS:
            own, whole = timings[names[ratio]], timings[names[0.0]]
            report.ratio(f"{what}, {ratio:.0%} removed", own.median / whole.median, shares[ratio])
    return report


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.smaller")
    parser.add_argument("--quick", action="store_true", help="few repetitions")
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args()
    take_every_character()
    torch.set_num_threads(1)
    console = Console()
    report = run({1: 5, 128: 2} if options.quick else BATCHES, console)
    report.print(console)
    report.write(options.out)


if __name__ == "__main__":
    main()
