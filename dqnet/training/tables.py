"""What a run prints when it is done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from dqnet.costs.static import BIT_FLOPS
from dqnet.data.splits import lines_of_left_out
from dqnet.formats import Precision
from dqnet.units import KILO, MEGA, unit_for

#: characters of a layer's bar, and one shade for each width, the cheapest lightest
BAR, SHADES = 20, "░▒▓█"


def print_summary(console: Console, summary: dict[str, Any]) -> None:
    """Top-1, Bit-FLOPs against the target, and the share of images at each layer's widths."""
    table = Table(title="result", show_header=False, title_justify="left")
    table.add_row("top-1", f"{summary['top1']:.2f} %")
    table.add_row("top-5", f"{summary['top5']:.2f} %")
    table.add_row("loss", f"{summary['loss']:.4f}")
    if summary["bit_flops"] is not None:
        target = summary["target_bit_flops"]
        ratio = summary["bit_flops"] / target
        table.add_row("Bit-FLOPs, mean image", MEGA.show(summary["bit_flops"], ".3f"))
        table.add_row("target", f"{MEGA.show(target, '.3f')} (the mean is {ratio:.3f} of it)")
        name = summary.get("cost", BIT_FLOPS)  # older summaries lack it
        if name != BIT_FLOPS:
            price, target = summary["costs"][name], summary["target_cost"]
            shown = (
                f"{unit_for(price).show(price)} (the mean is {price / target:.3f} of the target)"
            )
            table.add_row(name, shown)
        if summary.get("budget") is not None:
            share = summary["bit_flops"] / summary["budget_bit_flops"]
            table.add_row(
                "budget",
                f"{MEGA.show(summary['budget_bit_flops'], '.3f')} (the mean is {share:.3f} of it), "
                f"λ = {summary['budget_lambda']:.4f}",
            )
        table.add_row("standard deviation", MEGA.show(summary["bit_flops_std"], ".3f"))
        table.add_row("with full-precision layers", MEGA.show(summary["bit_flops_total"], ".3f"))
        table.add_row("mean width", f"{summary['mean_width']:.3f} bits")
    if "winograd" in summary:
        own = summary["winograd"]
        products, direct = (MEGA.show(own[key], ".3f") for key in ("multiplications", "macs"))
        table.add_row(
            f"Winograd, {own['layers']} layers",
            f"{products} multiplications, directly {direct} "
            f"({own['macs'] / own['multiplications']:.2f} times as many); "
            f"{MEGA.show(own['additions'], '.3f')} additions in transforms",
        )
    if summary.get("weight_bytes") is not None:  # older summaries lack it
        table.add_row("packed network", f"{KILO.show(summary['weight_bytes'], '.1f')}B")
    if "weight_sparsity" in summary:  # of a run with pruning
        table.add_row("weights that are zero", f"{summary['weight_sparsity']:.2%}")
    if summary["width_counts"]:
        table.add_row("different routings", f"{summary['distinct_routings']}")
        params, macs = summary["controller_params"], summary["controller_macs"]
        table.add_row(
            "controller",
            f"{params} parameters ({params / summary['params']:.2%} of the backbone's), "
            f"{macs} multiply-accumulates ({macs / summary['macs']:.2%})",
        )
    console.print(table)
    if summary["width_counts"]:
        console.print(_width_table(summary["width_counts"]))


def print_line(console: Console, line: str) -> None:
    """A line as it is, however long: brackets in it are not markup, and it is not wrapped."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_left_out(console: Console, left_out: Mapping[str, str]) -> None:
    """How many files were left out of the data for each reason, and the first of them."""
    for line in lines_of_left_out(left_out):
        print_line(console, line)


def _width_table(counts: dict[str, dict[str, int]]) -> Table:
    table = Table(title="images at each width", title_justify="left")
    table.add_column("layer")
    widths = list(next(iter(counts.values())))
    for width in widths:
        table.add_column(Precision.parse(width).label, justify="right")
    table.add_column("")
    for name, row in counts.items():
        shares = [count / sum(row.values()) for count in row.values()]
        bar = "".join(
            SHADES[k * (len(SHADES) - 1) // (len(widths) - 1)] * round(BAR * share)
            for k, share in enumerate(shares)
        )
        table.add_row(name, *(f"{share:.1%}" for share in shares), bar)
    return table
