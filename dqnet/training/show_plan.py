"""``train.py --cfg plan``: what every layer would run at, without training."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from dqnet.config import TrainConfig
from dqnet.costs.network import full_precision_cost, reachable_bits
from dqnet.costs.static import static_bit_flops
from dqnet.data import load_data
from dqnet.formats import FULL_PRECISION_BITS
from dqnet.network import QuantizedModel
from dqnet.plan import Plan
from dqnet.training.build import build_model
from dqnet.units import MEGA

#: Hydra's own option, which shows a configuration instead of running it
OPTIONS = ("--cfg", "-c")


def plan_is_wanted(arguments: list[str]) -> bool:
    """Whether ``--cfg plan`` is among the arguments.

    It is taken out, since Hydra does not know it, and Hydra is told to make no folder.
    """
    for i, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name in OPTIONS and (value or "".join(arguments[i + 1 : i + 2])) == "plan":
            del arguments[i : i + (1 if value else 2)]
            arguments.append("hydra.run.dir=.")
            return True
    return False


def show_plan(config: TrainConfig, console: Console | None = None) -> None:
    """Prints the plan: a table on a terminal, else the JSON of ``plan.json``."""
    console = console or Console()
    splits = load_data(config.data)
    model = build_model(
        config.model, config.quant, splits.num_classes, splits.image_shape, load_weights=False
    )
    if not isinstance(model, QuantizedModel):
        console.print("quant=none: every layer is in full precision", highlight=False)
    elif console.is_terminal:
        console.print(_table(model.plan))
        low, high = reachable_bits(model)
        full = MEGA.show(full_precision_cost(model.layers), ".3f")
        console.print(
            f"Bit-FLOPs of an image from {MEGA.show(static_bit_flops(model, low), '.3f')} to "
            f"{MEGA.show(static_bit_flops(model, high), '.3f')}: as static networks of {low:.3f} "
            f"to {high:.3f} bits; in full precision {full} more",
            highlight=False,
        )
    else:
        sys.stdout.write(model.plan.dumps())


def _table(plan: Plan) -> Table:
    table = Table(title="plan", title_justify="left")
    table.add_column("layer")
    table.add_column("role")
    for name in ("runs at", "MACs", "weights"):
        table.add_column(name, justify="right")
    for layer in plan.layers:
        widths = "/".join(map(str, layer.widths)) or str(FULL_PRECISION_BITS)
        widths += f", {layer.winograd}" if layer.winograd else ""
        pinned = ", pinned" if layer.pinned else ""
        counts = f"{layer.macs:,}", f"{layer.weights:,}"
        table.add_row(layer.name, layer.role + pinned, widths, *counts)
    return table
