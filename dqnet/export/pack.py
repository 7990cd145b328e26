"""Pack a trained network: codes at their bits, and read them back.

python -m dqnet.export.pack RUN                     # RUN/packed.safetensors, of the run's best.pt
python -m dqnet.export.pack RUN/last.pt small.safetensors

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

from dqnet.config import EvalConfig
from dqnet.errors import UserError
from dqnet.evaluation.trained import load_trained
from dqnet.export.packed import load_packed, payload_bytes, save_packed
from dqnet.network import QuantizedModel
from dqnet.standard_output import take_every_character
from dqnet.state_dicts import added_by_conversion
from dqnet.training.tables import print_line
from dqnet.units import KILO

#: test images whose logits are compared
IMAGES = 256


@dataclass(frozen=True)
class Packed:
    """What was written.

    Attributes:
        path: the file.
        weight_bytes: of its tensors.
        float_bytes: of the float network's parameters and buffers.
        images: how many were classified by the network and by what was read back.
        same: whether logits and routing were the same, bit for bit.
    """

    path: Path
    weight_bytes: int
    float_bytes: int
    images: int
    same: bool


@torch.no_grad()
def pack(checkpoint: str, path: Path | None = None, console: Console | None = None) -> Packed:
    """Writes a run's network, reads it back and compares the two on test images.

    Args:
        checkpoint: a file, or a run folder, meaning its ``best.pt``.
        path: the file to write; ``None``: ``packed.safetensors`` beside the checkpoint.
        console: is told of damaged images.
    """
    console = console or Console()
    trained = load_trained(checkpoint, EvalConfig(checkpoint=checkpoint), console)
    path = trained.path.with_name("packed.safetensors") if path is None else path
    model = trained.model.eval()
    save_packed(model, trained.content, trained.splits.image_shape, path)
    loaded = trained.device.place(load_packed(path))
    images, same = 0, True
    for batch, _ in trained.held_out:
        batch = trained.device.images(batch)[: IMAGES - images]
        pairs = zip(_answers(model(batch)), _answers(loaded(batch)), strict=True)
        same &= all(torch.equal(ours, theirs) for ours, theirs in pairs)
        images += len(batch)
        if images == IMAGES:
            break
    return Packed(path, payload_bytes(path), _float_bytes(model), images, same)


def _answers(output: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (output,) if isinstance(output, torch.Tensor) else tuple(output)


def _float_bytes(model: torch.nn.Module) -> int:
    """Of a network in float32, without what conversion added."""
    network = model.backbone if isinstance(model, QuantizedModel) else model
    return sum(
        value.nbytes
        for name, value in network.state_dict().items()
        if not added_by_conversion(name) and value.is_floating_point()
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; a user's mistake ends it with one line and exit status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m dqnet.export.pack",
        description="Writes a trained network with its weights as codes, and reads it back.",
    )
    parser.add_argument("run", metavar="RUN", help="a run folder (its best.pt) or a checkpoint")
    parser.add_argument("file", metavar="FILE", type=Path, nargs="?", help="what to write")
    options = parser.parse_args(arguments)
    take_every_character()
    console = Console()
    try:
        packed = pack(options.run, options.file, console)
    except UserError as error:
        sys.exit(f"error: {error}")
    share = packed.weight_bytes / packed.float_bytes
    size = f"{KILO.show(packed.weight_bytes, '.1f')}B, {share:.1%} of the float network"
    print_line(console, f"written: {packed.path}: {size}")
    answer = "yes" if packed.same else "NO"
    print_line(console, f"same logits on {packed.images} images: {answer}")
    if not packed.same:
        sys.exit("error: what was read back is not the network that was packed")


if __name__ == "__main__":
    main()
