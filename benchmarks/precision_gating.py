"""Would precision gating pay? The low bits of inputs, computed only where an output is large.

python -m benchmarks.precision_gating RUN [--data ROOT]

Zhang et al. (ICLR 2020, https://arxiv.org/abs/2002.07136) split inputs, x = x_high + x_low,
compute W * x_high everywhere and add W * x_low where the result, after its batch norm, is above a
threshold: behind a ReLU, small outputs do not matter. Here a static network that was trained
without gates gets them afterwards. Thresholds are quantiles of what held-out images give, one for
each layer. Skipped products cost nothing, so that a gated network costs no more than it did.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from dqnet.config import EvalConfig
from dqnet.errors import UserError
from dqnet.evaluation.trained import Trained, load_trained
from dqnet.layers.quant_layer import QuantLayer, quantized_layers
from dqnet.measurement import percent
from dqnet.runtime.files import write_json

#: of the outputs of every layer that keep their high bits alone
SKIPPED = (0.2, 0.4, 0.6, 0.8)


class Gate:
    """The hook of one layer.

    Args:
        layer: a static one with inputs that are not negative.
        norm: the batch norm that reads its output.
        low: how many of the input's bits are low ones.
    """

    def __init__(self, layer: QuantLayer, norm: nn.Module, low: int) -> None:
        self.norm, self.low = norm, low
        self.threshold: float | None = None  # None: collect
        self.seen: list[Tensor] = []
        self.skipped, self.outputs = 0, 0
        layer.register_forward_hook(self)

    def __call__(self, layer: QuantLayer, args: tuple[Tensor], output: Tensor) -> Tensor:
        """The output ``[N, C, H, W]`` with gates; while quantiles are collected, as it is."""
        codes = layer.input_quantizer.encode(args[0], 0)
        high = codes.codes >> self.low << self.low
        weight = layer.weight_quantizer(layer.weight, 0)
        coarse = layer.geometry.forward(replace(codes, codes=high).values(), weight, layer.bias)
        gate = self.norm(coarse)
        if self.threshold is None:
            self.seen.append(gate.flatten()[:: max(1, gate.numel() // 20_000)])
            return output
        fine = gate > self.threshold
        self.skipped += int((~fine).sum())
        self.outputs += fine.numel()
        return torch.where(fine, output, coarse)


def gates_of(trained: Trained, low: int) -> dict[str, Gate]:
    """A gate for every layer with inputs of more than ``low`` bits that are not negative.

    Its norm is known by name, as in ResNets: ``bn1`` of ``conv1``. Layers with a precision of their
    own have no gate.
    """
    model = trained.model
    gates = {}
    modules = dict(model.backbone.named_modules())
    pinned = {layer.name for layer in model.layers if layer.pinned}
    for name, layer in quantized_layers(model).items():
        norm = modules.get(name.replace("conv", "bn"))
        if name in pinned or not isinstance(norm, nn.BatchNorm2d):
            continue
        if layer.input_quantizer.signed or layer.precisions[0].input.bits <= low:
            continue
        gates[name] = Gate(layer, norm, low)
    if not gates:
        raise UserError(f"{trained.path} has no layer that could be gated")
    return gates


@torch.no_grad()
def measure(trained: Trained, low: int) -> dict[str, Any]:
    """Top-1 without gates, and for each of ``SKIPPED`` with them."""
    plain = trained.measure(trained.held_out)
    gates = gates_of(trained, low)
    trained.measure(trained.data.calibration)
    seen = {name: torch.cat(gate.seen) for name, gate in gates.items()}
    plan = {layer.name: layer for layer in trained.model.layers}
    results: dict[str, Any] = {"top1": percent(plain.correct), "low_bits": low, "gated": []}
    for share in SKIPPED:
        for name, gate in gates.items():
            gate.threshold = seen[name].quantile(share).item()
            gate.skipped = gate.outputs = 0
        gated = trained.measure(trained.held_out)
        saved = 0.0
        for name, gate in gates.items():
            layer = plan[name]
            saved += (
                layer.macs * layer.precisions[0].weight.bits * low * gate.skipped / gate.outputs
            )
        skipped = sum(gate.skipped for gate in gates.values())
        results["gated"].append(
            {
                "skipped": skipped / sum(gate.outputs for gate in gates.values()),
                "top1": percent(gated.correct),
                "cost": 1 - saved / plain.cost.mean().item(),
            }
        )
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.precision_gating", description=__doc__.splitlines()[0]
    )
    parser.add_argument("run", metavar="RUN", help="a static network, unsigned inputs")
    parser.add_argument("--data", metavar="ROOT", help="where the images are now")
    parser.add_argument("--low", type=int, default=2, help="bits that gates skip (default: 2)")
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args(arguments)
    config = EvalConfig()
    config.data.root = options.data
    try:
        results = measure(load_trained(options.run, config, Console()), options.low)
    except UserError as error:
        sys.exit(f"error: {error}")
    table = Table(title=f"top-1 without gates {results['top1']:.2f} %", title_justify="left")
    for heading in ("outputs without low bits", "top-1", "cost / static"):
        table.add_column(heading, justify="right")
    for row in results["gated"]:
        table.add_row(f"{row['skipped']:.1%}", f"{row['top1']:.2f} %", f"{row['cost']:.3f}")
    Console().print(table)
    if options.out is not None:
        write_json(options.out, results)


if __name__ == "__main__":
    main()
