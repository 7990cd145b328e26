"""The files and folders that the table names: images, checkpoints and what pretends to be one."""

from __future__ import annotations

import copy
import io
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from rich.console import Console

from dqnet.cli import to_object
from dqnet.config import TrainConfig
from dqnet.data.make_shards import make_shards
from dqnet.runtime.lock import LOCK
from dqnet.training.train import train

CONF = Path(__file__).resolve().parents[2] / "conf"


def make_files(folder: Path) -> None:
    """Fills an empty folder."""
    (folder / "empty").mkdir()
    (folder / "text.pt").write_text("hello\n", encoding="utf-8")
    _make_weights(folder)
    _make_trained(folder)
    shutil.copy(folder / "trained/plan.json", folder / "plan.json")
    for name, content in TABLES.items():
        (folder / f"{name}.csv").write_text(content, encoding="utf-8")
    for name, change in IMAGE_FOLDERS.items():
        _make_images(folder / name)
        change(folder / name)
    for name, change in SHARDS.items():
        make_shards(folder / "good", folder / name)
        change(folder / name)
    batches = folder / "bad_labels/cifar-10-batches-py"
    batches.mkdir(parents=True)
    content = {"data": np.zeros((1, 3072), np.uint8), "labels": [10]}
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (batches / name).write_bytes(pickle.dumps(content))


def _make_weights(folder: Path) -> None:
    """Files of float weights."""
    state = timm.create_model("resnet20_cifar", num_classes=7, in_chans=1).state_dict()
    torch.save(state, folder / "seven.pt")
    whole = (folder / "seven.pt").read_bytes()
    (folder / "half.pt").write_bytes(whole[: len(whole) // 2])
    torch.save({"a": torch.ones(3)}, folder / "foreign.pt")
    torch.save([1, 2], folder / "list.pt")
    torch.save({"state_dict": _Code(), "config": {}, "model": {}}, folder / "code.pt")
    state = timm.create_model("resnet20_cifar", num_classes=10, in_chans=1).state_dict()
    state["conv1.weight"][0, 0, 0, 0] = torch.nan
    torch.save(state, folder / "nan.pt")


class _Code:
    """Unpickled with code allowed, it would print."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, ("echo a checkpoint ran code",)


# Tables of costs

_COLUMNS = "layer,precision,cost\n"
_LAYERS = [f"layer{i}.{j}.conv{k}" for i in (1, 2, 3) for j in (0, 1, 2) for k in (1, 2)]
TABLES = {
    "words": f"{_COLUMNS}conv1,2,fast\n",
    "negative": f"{_COLUMNS}conv1,2,-1\n",
    "short": f"{_COLUMNS}conv1,2,1\nconv1,4,2\nconv1,8,4\n",
    "narrow": _COLUMNS + "".join(f"{name},2,1\n{name},4,2\n" for name in _LAYERS),
    "share": "layer,tensor,format,zeros\nconv1,input,2,1.5\n",
}

# Checkpoints


def _make_trained(folder: Path) -> None:
    """A run folder, a damaged one, and checkpoints that differ from the run's in one thing."""
    overrides = ["data.size=8", "trainer.device=cpu", "trainer.progress=false", "trainer.epochs=0"]
    overrides += ["quant.widths=[2,3,4]", "quant.static_width=3"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = to_object(TrainConfig, compose("train", overrides))
    train(config, folder / "trained", Console(file=io.StringIO()))
    (folder / "broken_run").mkdir()
    for run in ("trained", "broken_run"):
        (folder / run / LOCK).touch()  # every start makes one
    (folder / "broken_run/last.pt").write_bytes((folder / "half.pt").read_bytes())
    whole = (folder / "trained/best.pt").read_bytes()
    (folder / "cut.pt").write_bytes(whole[: len(whole) * 9 // 10])
    content = torch.load(io.BytesIO(whole), weights_only=True)
    for name, change in CHECKPOINTS.items():
        changed = copy.deepcopy(content)
        change(changed)
        torch.save(changed, folder / f"{name}.pt")


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Sets ``a/b/c`` in nested dictionaries."""
    *parents, key = path.split("/")

    def change(content: dict[str, Any]) -> None:
        for parent in parents:
            content = content[parent]
        content[key] = value

    return change


def _remove(path: str) -> Callable[[dict[str, Any]], None]:
    *parents, key = path.split("/")

    def change(content: dict[str, Any]) -> None:
        for parent in parents:
            content = content[parent]
        del content[key]

    return change


def _spoil_weights(content: dict[str, Any]) -> None:
    content["model"]["backbone.conv1.weight"][0, 0, 0, 0] = torch.nan


def _from_cifar(content: dict[str, Any]) -> None:
    content["config"]["data"] |= {"_target_": "dqnet.data.cifar.load10", "size": 32}
    content["config"]["data"]["download"] = True


_TARGET = "config/data/_target_"
CHECKPOINTS = {
    "future": _set("format", 99),
    "lacking": _remove("image_shape"),
    "no_table": _set("config", [1]),
    "old": _set("config/optim/rate", 1.0),
    "incomplete": _remove("config/model"),
    "other_model": _set("config/model/name", "resnet32_cifar"),
    "other_shape": _set("model/backbone.conv1.weight", torch.zeros(8, 1, 3, 3)),
    "other_classes": _set("num_classes", 7),
    "other_names": _set("class_names", ["0", "1", "two", *map(str, range(3, 10))]),
    "no_names": _set("class_names", 3),
    "other_images": _set("image_shape", [3, 8, 8]),
    "no_weights": _set("model", {"a": 1}),
    "diverged": _spoil_weights,
    "target_os": _set(_TARGET, "os.system"),
    "target_attribute": _set(_TARGET, "dqnet.data.folder.os.system"),
    "target_timm": _set(_TARGET, "timm.data.os.system"),
    "target_hub": _set(_TARGET, "torch.hub.load"),
    "target_inline": _set(_TARGET, "torch.utils.cpp_extension.load_inline"),
    "target_helper": _set(_TARGET, "dqnet.data.load.load_data"),
    "model_hub": _set("config/model/name", "hf-hub:stranger/resnet18"),
    "model_folder": _set("config/model/name", "local-dir:/tmp/stranger"),
    "args_weights": _set("config/model/args", {"checkpoint_path": "code.pt"}),
    "args_pretrained": _set("config/model/args", {"pretrained": True}),
    "args_config": _set("config/model/args", {"pretrained_cfg": {"file": "code.pt"}}),
    "args_overlay": _set("config/model/args", {"pretrained_cfg_overlay": {"url": "http://x"}}),
    "args_target": _set("config/model/args", {"_target_": "os.system"}),
    "quantizer": _set("config/quant/quantizer", "os.system"),
    "options": _set("config/quant/options", {"_target_": "os.system"}),
    "reference": _set("config/data/root", "${oc.env:HOME}"),
    "download": _from_cifar,
}


# Folders of images


def _make_images(root: Path) -> None:
    """train/ with four and test/ with two images of each of the classes cat and dog."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 4), ("test", 2)):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                _noise(rng).save(root / part / name / f"{i}.png")


def _noise(rng: np.random.Generator) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _cut_jpeg(root: Path) -> None:
    path = root / "train/dog/1.jpg"
    _noise(np.random.default_rng(1)).resize((64, 64)).save(path)
    _cut(path)


def _no_classes(root: Path) -> None:
    for name in ("cat", "dog"):
        shutil.rmtree(root / "train" / name)


def _only_text(root: Path) -> None:
    for path in (root / "train/dog").iterdir():
        path.rename(path.with_suffix(".txt"))


def _flat_test(root: Path) -> None:
    for path in (root / "test").glob("*/*.png"):
        path.rename(root / "test" / f"{path.parent.name}{path.name}")
    for name in ("cat", "dog"):
        (root / "test" / name).rmdir()


def _one_class(root: Path) -> None:
    for part in ("train", "test"):
        shutil.rmtree(root / part / "dog")


def _broken_link(root: Path) -> None:
    (root / "train/dog/1.png").unlink()
    (root / "train/dog/1.png").symlink_to("nowhere.png")


def _all_damaged(root: Path) -> None:
    for path in (root / "test/dog").iterdir():
        path.write_text("hello\n", encoding="utf-8")


def _deep(dtype: type[np.generic]) -> Callable[[Path], None]:
    pixels = np.arange(64, dtype=dtype).reshape(8, 8)
    return lambda root: Image.fromarray(pixels).save(root / "train/dog/1.tif")


IMAGE_FOLDERS: dict[str, Callable[[Path], Any]] = {
    "good": lambda root: None,
    "no_test": lambda root: shutil.rmtree(root / "test"),
    "no_classes": _no_classes,
    "empty_class": lambda root: [(root / p / "eel").mkdir() for p in ("train", "test")],
    "only_text": _only_text,
    "one_class": _one_class,
    "flat_test": _flat_test,
    "other_classes": lambda root: (root / "test/dog").rename(root / "test/eel"),
    "locked_class": lambda root: (root / "train/cat").chmod(0),
    "locked_image": lambda root: (root / "train/cat/0.png").chmod(0),
    "cut_png": lambda root: _cut(root / "train/dog/1.png"),
    "cut_jpeg": _cut_jpeg,
    "text_image": lambda root: (root / "train/dog/1.png").write_text("hello\n", encoding="utf-8"),
    "empty_image": lambda root: (root / "test/cat/0.png").write_bytes(b""),
    "floats": _deep(np.float32),
    "integers": _deep(np.int32),
    "broken_link": _broken_link,
    "all_damaged": _all_damaged,
}


# Shards of images


def _column(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """Changes a column of the training images' index."""

    def spoil(root: Path) -> None:
        with np.load(root / "train.npz") as stored:
            columns = dict(stored)
        np.savez(root / "train.npz", **columns | {name: change(columns[name])})

    return spoil


def _flip(root: Path) -> None:
    content = bytearray((root / "train.npz").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (root / "train.npz").write_bytes(content)


SHARDS: dict[str, Callable[[Path], Any]] = {
    "cut_shard": lambda root: _cut(root / "train-00000.tar"),
    "cut_index": lambda root: _cut(root / "train.npz"),
    "flipped_index": _flip,
    "short_labels": _column("labels", lambda labels: labels[:-1]),
    "negative_offset": _column("offset", lambda offset: -offset),
    "float_shard": _column("shard", lambda shard: shard.astype(float)),
    "other_shard": _column("shard", lambda shard: shard + 1),
    "no_classes_info": lambda root: (root / "_info.json").write_text('{"splits": {}}', "utf-8"),
    "list_info": lambda root: (root / "_info.json").write_text("[1]", "utf-8"),
}
