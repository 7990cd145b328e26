"""Remove the filters that a run has left at zero: a smaller network with the same logits.

python -m dqnet.training.remove_filters RUN         # RUN/smaller/best.pt, of the run's best.pt
python -m dqnet.training.remove_filters RUN/last.pt smaller.pt

What is written is measured by ``python eval.py checkpoint=RUN/smaller`` and trained, quantized or
not, by ``python train.py model.checkpoint_path=RUN/smaller/best.pt model.transforms=[{name:
channels}]``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from dqnet.errors import UserError
from dqnet.standard_output import take_every_character
from dqnet.training.smaller import write_smaller
from dqnet.training.tables import print_line


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; a user's mistake ends it with one line and exit status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m dqnet.training.remove_filters",
        description="Writes a float network without the filters that are zero.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder or a checkpoint")
    parser.add_argument("file", metavar="FILE", type=Path, nargs="?", help="what to write")
    options = parser.parse_args(arguments)
    take_every_character()
    console = Console()
    try:
        made = write_smaller(options.run, options.file)
    except UserError as error:
        sys.exit(f"error: {error}")
    print_line(console, f"written: {made.path}, {len(made.counts)} layers with fewer filters")
    for what, (before, after) in (
        ("filters", made.filters),
        ("parameters", made.params),
        ("multiply-accumulates", made.macs),
    ):
        print_line(console, f"{what}: {before:,} to {after:,}, {1 - after / before:.1%} fewer")
    print_line(
        console,
        f"largest difference of a logit on noise: {made.difference:.2g}, of {made.largest:.2g}",
    )


if __name__ == "__main__":
    main()
