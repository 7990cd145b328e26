"""Runs on a sixth of the digits with an eight-layer network."""

import io
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiny  # noqa: F401  registers resnet8_cifar
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_digits

from dqnet.cli import to_object
from dqnet.config import EvalConfig, TrainConfig
from dqnet.data import digits
from dqnet.training.train import train
from eval import evaluate_and_report

CONF = Path(__file__).resolve().parents[1] / "conf"
#: 240 training images in four batches, 60 test images
SMALL = [
    "model.name=resnet8_cifar",
    "data.size=8",
    "data.batch_size=60",
    "trainer.device=cpu",
    "trainer.progress=false",
    "trainer.epochs=1",
]


@dataclass
class Run:
    """A run's folder and what it printed."""

    folder: Path
    summary: dict
    text: str

    @property
    def metrics(self):
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").open()]

    def checkpoint(self, name="last.pt"):
        return torch.load(self.folder / name, weights_only=True)


@pytest.fixture(scope="module", autouse=True)
def few_digits():
    """The first 300 of scikit-learn's digits."""
    everything = load_digits()
    everything.images, everything.target = everything.images[:300], everything.target[:300]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "load_digits", lambda: everything)
        yield


@pytest.fixture(scope="session")
def config():
    """``config("key=value", ...)``: the configuration that the command line would compose."""

    @cache
    def composed(*overrides):
        # Hydra's state is global: it is left as it was, for tests of other files.
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("train", [*SMALL, *overrides])

    return lambda *overrides: to_object(TrainConfig, composed(*overrides))


@pytest.fixture(scope="session")
def run(config, tmp_path_factory):
    """``run("key=value", ..., folder=...)``: trains, or continues, in the folder."""

    def start(*overrides, folder=None):
        folder = tmp_path_factory.mktemp("runs") / "run" if folder is None else folder
        text = io.StringIO()
        summary = train(config(*overrides), folder, Console(file=text, width=100))
        return Run(folder, summary, text.getvalue())

    return start


@pytest.fixture(scope="session")
def measure():
    """``measure(path, key=value, ...)``: what eval.py does."""

    def start(path, **changes):
        console = Console(file=io.StringIO(), width=100)
        return evaluate_and_report(EvalConfig(checkpoint=str(path), **changes), console)

    return start


@pytest.fixture
def image_folder(tmp_path):
    """``image_folder("a", "b")``: train/ and test/ with these classes, 4 and 2 images of each."""

    def make(*classes):
        root = tmp_path / f"images-{len(classes)}"
        rng = np.random.default_rng(0)
        for part, count in (("train", 4), ("test", 2)):
            for name in classes:
                (root / part / name).mkdir(parents=True)
                for i in range(count):
                    pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(root / part / name / f"{i}.png")
        return root

    return make
