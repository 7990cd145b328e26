"""CIFAR from files in the published format, made here; nothing is downloaded."""

import pickle

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, CIFAR100

from dqnet.data import load_data
from dqnet.errors import UserError

# Data set, label key, key of the names, target function.
KINDS = [
    (CIFAR10, "labels", "label_names", "dqnet.data.cifar.load10"),
    (CIFAR100, "fine_labels", "fine_label_names", "dqnet.data.cifar.load100"),
]


@pytest.mark.parametrize("dataset, label_key, names_key, target", KINDS)
def test_pixels_and_labels(dataset, label_key, names_key, target, tmp_path, config, monkeypatch):
    folder = tmp_path / dataset.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)
    written = {}
    for attribute in ("train_list", "test_list"):
        files = getattr(dataset, attribute)
        # The checksums are those of the published files.
        monkeypatch.setattr(dataset, attribute, [[name, None] for name, _ in files])
        for name, _ in files:
            written[name] = rng.integers(0, 256, (2, 3072), dtype=np.uint8)
            (folder / name).write_bytes(pickle.dumps({"data": written[name], label_key: [0, 2]}))
    monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": None})
    names = {names_key: ["ant", "bee", "cow"]}
    (folder / dataset.meta["filename"]).write_bytes(pickle.dumps(names))

    splits = load_data(config(_target_=target, root=str(tmp_path), size=32))
    assert splits.class_names == ("ant", "bee", "cow")
    assert (splits.num_classes, splits.image_shape) == (3, (3, 32, 32))
    for part, files in ((splits.train, dataset.train_list), (splits.test, dataset.test_list)):
        raw = np.concatenate([written[name] for name, _ in files])
        assert torch.equal(part.images, torch.from_numpy(raw.reshape(-1, 3, 32, 32)))
        assert part.labels.tolist() == [0, 2] * len(files)


@pytest.mark.parametrize("dataset, target", [(kind[0], kind[3]) for kind in KINDS])
def test_missing_files(dataset, target, tmp_path, config):
    with pytest.raises(UserError, match=r"data\.download=true") as caught:
        load_data(config(_target_=target, root=str(tmp_path), size=32))
    assert dataset.__name__ in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_failed_download(tmp_path, config, monkeypatch):
    def download(self):
        raise OSError("no network")

    monkeypatch.setattr(CIFAR10, "download", download)
    chosen = config(_target_=KINDS[0][3], root=str(tmp_path), size=32, download=True)
    with pytest.raises(UserError, match=r"cannot download CIFAR10 .*no network"):
        load_data(chosen)


@pytest.mark.parametrize("changes", [{"size": 64, "root": "x"}, {"size": 32, "root": None}])
def test_wrong_values(config, changes):
    with pytest.raises(UserError, match=r"data\.(size|root)"):
        load_data(config(_target_=KINDS[0][3], **changes))
