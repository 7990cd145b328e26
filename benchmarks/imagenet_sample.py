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

from dqnet.data.folder import class_folders, files_below, is_image
from dqnet.data.make_shards import write_shards
from dqnet.data.splits import ImageFiles
from dqnet.errors import UserError

#: of so many images one is for calibration
EVERY = 5


def make_sample(source: Path, destination: Path) -> dict[str, Any]:
    """Writes the shards; returns what their ``_info.json`` says.

    Raises:
        UserError: if there are no images, or a folder cannot be written.
        OSError: if a folder cannot be read.
    """
    classes = class_folders(source)
    found = [
        (path, label)
        for label, folder in enumerate(classes.values())
        for path in filter(is_image, files_below(folder, set()))
    ]
    if len(found) < 2:
        raise UserError(f"{source} has fewer than two images in class folders")
    paths, labels = [path for path, _ in found], torch.tensor([label for _, label in found])
    chosen = torch.arange(len(paths)) % EVERY == 0
    parts = [
        ImageFiles(tuple(paths[i] for i in part.nonzero().flatten().tolist()), labels[part])
        for part in (chosen, ~chosen)
    ]
    return write_shards(tuple(classes), parts, destination)


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
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    for name, part in info["splits"].items():
        print(f"{name}: {part['num_samples']} images")


if __name__ == "__main__":
    main()
