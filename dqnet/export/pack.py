"""Pack a trained network: codes at their bits, and read them back.

python -m dqnet.export.pack RUN                     # RUN/packed.safetensors, of the run's best.pt
python -m dqnet.export.pack RUN/last.pt small.safetensors
python -m dqnet.export.pack RUN --coding huffman    # smaller: sparse, huffman, range, auto

The file is described in :mod:`dqnet.export.packed`; ``load_packed`` reads it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from dqnet.config import EvalConfig
from dqnet.errors import UserError
from dqnet.evaluation.trained import load_trained
from dqnet.export.coding import CODINGS, check_coding
from dqnet.export.packed import load_packed, save_packed
from dqnet.export.stages import stages
from dqnet.runtime.files import write_json
from dqnet.standard_output import take_every_character
from dqnet.training.tables import print_line
from dqnet.units import KILO

#: test images whose logits are compared
IMAGES = 256


@dataclass(frozen=True)
class Packed:
    """What was written.

    Attributes:
        path: the file.
        stages: bytes by stage of compression, see :func:`dqnet.export.stages.stages`.
        images: how many were classified by the network and by what was read back.
        same: whether logits and routing were the same, bit for bit.
    """

    path: Path
    stages: dict[str, int]
    images: int
    same: bool

    @property
    def weight_bytes(self) -> int:
        """Of all numbers in the file."""
        return self.stages["coded"]


@torch.no_grad()
def pack(
    checkpoint: str,
    path: Path | None = None,
    console: Console | None = None,
    coding: str = "none",
) -> Packed:
    """Writes a run's network, reads it back and compares the two on test images.

    What was found is written as well, to a file that has ``.json`` for a suffix.

    Args:
        checkpoint: a file, or a run folder, meaning its ``best.pt``.
        path: the file to write; ``None``: ``packed.safetensors`` beside the checkpoint.
        console: is told of damaged images, and shows progress.
        coding: of the weights' codes, one of :data:`dqnet.export.coding.CODINGS`.

    Raises:
        UserError: if there is no such run or coding, the coding's library is missing, a quantizer
            has no codes, or the file cannot be written.
    """
    check_coding(coding)
    console = console or Console()
    trained = load_trained(checkpoint, EvalConfig(checkpoint=checkpoint), console)
    path = trained.path.with_name("packed.safetensors") if path is None else path
    model = trained.model.eval()
    save_packed(model, trained.content, trained.splits.image_shape, path, coding, console)
    loaded = trained.device.place(load_packed(path, console))
    images, same = 0, True
    for batch, _ in trained.held_out:
        batch = trained.device.images(batch)[: IMAGES - images]
        pairs = zip(_answers(model(batch)), _answers(loaded(batch)), strict=True)
        same &= all(torch.equal(ours, theirs) for ours, theirs in pairs)
        images += len(batch)
        if images == IMAGES:
            break
    packed = Packed(path, stages(model, path), images, same)
    content = {"coding": coding, "stages": packed.stages, "images": images, "same_logits": same}
    write_json(path.with_suffix(".json"), content)
    return packed


def _answers(output: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (output,) if isinstance(output, torch.Tensor) else tuple(output)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; a user's mistake ends it with one line and exit status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m dqnet.export.pack",
        description="Writes a trained network with its weights as codes, and reads it back.",
    )
    parser.add_argument("run", metavar="RUN", help="a run folder (its best.pt) or a checkpoint")
    parser.add_argument("file", metavar="FILE", type=Path, nargs="?", help="what to write")
    parser.add_argument(
        "--coding", default="none", help=f"of the codes: {', '.join(CODINGS)} (default: none)"
    )
    options = parser.parse_args(arguments)
    take_every_character()
    console = Console()
    try:
        packed = pack(options.run, options.file, console, options.coding)
    except UserError as error:
        sys.exit(f"error: {error}")
    float_bytes = packed.stages["float"]
    share = packed.weight_bytes / float_bytes
    size = f"{KILO.show(packed.weight_bytes, '.1f')}B, {share:.1%} of the float network"
    print_line(console, f"written: {packed.path}: {size}")
    console.print(_table(packed.stages))
    answer = "yes" if packed.same else "NO"
    print_line(console, f"same logits on {packed.images} images: {answer}")
    if not packed.same:
        sys.exit("error: what was read back is not the network that was packed")


def _table(sizes: dict[str, int]) -> Table:
    table = Table(title="bytes by stage", title_justify="left")
    table.add_column("stage")
    table.add_column("bytes", justify="right")
    table.add_column("float / stage", justify="right")
    for stage, size in sizes.items():
        table.add_row(stage, f"{size:,}", f"{sizes['float'] / size:.2f}")
    return table


if __name__ == "__main__":
    main()
