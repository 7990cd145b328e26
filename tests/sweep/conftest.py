"""Sweeps from the command line a user types, on so few pictures that an epoch takes no time."""

import numpy as np
import pytest
from PIL import Image
from processes import Process


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Settings of runs on 16 pictures of noise."""
    root = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        for label in ("a", "b"):
            (root / part / label).mkdir(parents=True)
            for i in range(8):
                pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / label / f"{i}.png")
    settings = "data=imagefolder data.size=8 data.batch_size=8 quant.widths=[2] trainer.epochs=1"
    return [*settings.split(), f"data.root={root}", "trainer.device=cpu", "trainer.progress=false"]


@pytest.fixture
def start(tmp_path):
    """``start(arguments...)``: the command in ``tmp_path``; killed with the test."""
    processes = []

    def run(*arguments):
        processes.append(Process(tmp_path, arguments))
        return processes[-1]

    yield run
    for process in processes:
        if process.process.poll() is None:
            process.kill()
