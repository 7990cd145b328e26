"""Makes shards of a small sample of ImageNet, whose parts need not have every class.

python -m benchmarks.imagenet_sample SOURCE DESTINATION
python train.py data=shards data.root=DESTINATION …

SOURCE has one folder per class, SOURCE/CLASS/*.jpg. Classes are numbered in alphabetical order,
images are sorted by class and name. Every fifth of them, from the first one on, is in the training
part, which quantizers are calibrated on; the others are the test part.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torchvision.datasets import ImageFolder

from dqnet.data.make_shards import write_shards
from dqnet.data.splits import ImageFiles
from dqnet.errors import UserError

#: of so many images one is for calibration
EVERY = 5


def make_sample(source: Path, destination: Path) -> dict[str, Any]:
    """Writes the shards; returns what their ``_info.json`` says.

    Raises:
        UserError: if there are no images, or a folder cannot be read or written.
    """
    try:
        folder = ImageFolder(str(source))
    except FileNotFoundError as error:
        raise UserError(str(error).partition("\n")[0]) from error
    paths, labels = [path for path, _ in folder.samples], torch.tensor(folder.targets)
    chosen = torch.arange(len(paths)) % EVERY == 0
    parts = [
        ImageFiles(tuple(paths[i] for i in part.nonzero().flatten().tolist()), labels[part])
        for part in (chosen, ~chosen)
    ]
    return write_shards(folder.classes, parts, destination)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.imagenet_sample", description=__doc__.splitlines()[0]
    )
    parser.add_argument("source", type=Path, help="folder with CLASS/*.jpg")
    parser.add_argument("destination", type=Path, help="folder that does not exist yet")
    options = parser.parse_args()
    try:
        info = make_sample(options.source, options.destination)
    except UserError as error:
        sys.exit(f"error: {error}")
    for name, part in info["splits"].items():
        print(f"{name}: {part['num_samples']} images")


if __name__ == "__main__":
    main()
