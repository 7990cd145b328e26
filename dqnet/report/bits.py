"""Bits of every layer, weights and inputs, from a run's ``plan.json``.

python -m dqnet.report.bits runs/NAME
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from dqnet.errors import UserError
from dqnet.formats import FULL_PRECISION_BITS
from dqnet.plan import LayerPlan, Plan
from dqnet.report.page.figure import ACCENT, CONTRAST, in_style
from dqnet.runtime.files import write_atomically

#: inches for one layer, and at least for all
LAYER, LEAST = 0.28, 5.0


def bits_of(layer: LayerPlan) -> tuple[float, float]:
    """Bits of weight and input; of a routed layer's candidates the mean."""
    if not layer.precisions:
        return FULL_PRECISION_BITS, FULL_PRECISION_BITS
    pairs = [(own.weight.bits, own.input.bits) for own in layer.precisions]
    return tuple(sum(bits) / len(pairs) for bits in zip(*pairs, strict=True))


@in_style
def bits_figure(plan: Plan) -> Figure:
    """Two bars for each layer that has a precision, in execution order; full precision is left out.

    Raises:
        UserError: if every layer is in full precision.
    """
    layers = [layer for layer in plan.layers if layer.precisions]
    if not layers:
        raise UserError("the plan has every layer in full precision: there are no bits to draw")
    figure = Figure(figsize=(max(LEAST, LAYER * len(layers) + 1), 3.2), layout="constrained")
    axes = figure.subplots()
    weights, inputs = zip(*map(bits_of, layers), strict=True)
    places = range(len(layers))
    axes.bar([x - 0.2 for x in places], weights, 0.4, color=ACCENT, label="weights")
    axes.bar([x + 0.2 for x in places], inputs, 0.4, color=CONTRAST, label="inputs")
    axes.set_xticks(places, [layer.name for layer in layers], rotation=90)
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("bits")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(0, 1.15 * max(*weights, *inputs))
    axes.legend(ncols=2, loc="upper left")
    return figure


@in_style
def write_bits(folder: Path) -> list[Path]:
    """Draws ``bits.png`` and ``bits.pdf`` beside a run's ``plan.json``.

    Raises:
        UserError: if the plan cannot be read.
    """
    figure = bits_figure(Plan.load(folder / "plan.json"))
    written = [folder / f"bits.{kind}" for kind in ("png", "pdf")]
    for path in written:
        save = partial(figure.savefig, format=path.suffix[1:], dpi=150)
        write_atomically(path, save)
    return written


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m dqnet.report.bits", description=__doc__.splitlines()[0]
    )
    parser.add_argument("run", type=Path, help="a run's folder")
    try:
        for path in write_bits(parser.parse_args().run):
            print(path)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
