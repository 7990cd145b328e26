"""From a configuration to a data set: what is refused, and the configurations we ship."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dqnet.config import DataConfig
from dqnet.data import load_data, loaders
from dqnet.data.load import _resolve
from dqnet.errors import UserError

CONF = Path(__file__).parents[2] / "conf" / "data"


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.run",
        "builtins.eval",
        "",
        "load",
        "dqnet",
        "dqnetevil.load",
        "dqnet.data.nothing.load",
        "dqnet.data.digits.nothing",
        "dqnet.data.digits.load.more",
        "dqnet.data.folder.Path",  # imported there, not defined there
        "dqnet.data.load.importlib",
        "dqnet.data.load.importlib.import_module",
        "dqnet.data.folder.MAX_CACHE_BYTES",
        "dqnet.data.folder.os.system",
        "dqnet.data.load.load_data",  # a function of a configuration, but no data set
        "dqnet.data.decode.read_image",
        "dqnet.data.splits.Splits",
        "dqnet.training.checkpoint.load_checkpoint",
        "dqnet.cli.start",
        "torch.hub.load",
        "torch.utils.cpp_extension.load_inline",
        "timm.data.os.system",
        "timm.models.load_checkpoint",
        "torchvision.datasets.ImageFolder",
    ],
)
def test_only_data_sets_of_this_package_are_called(config, target):
    with pytest.raises(UserError) as caught:
        load_data(config(_target_=target))
    assert repr(target) in str(caught.value)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"batch_size": 0}, "data.batch_size 0 must be at least 1"),
        ({"size": 0}, "data.size 0 must be at least 1"),
        ({"crop_padding": -1}, "data.crop_padding -1 must not be negative"),
        ({"workers": -1}, "data.workers -1 must not be negative"),
        ({"damaged": "skipp"}, "unknown data.damaged 'skipp'; did you mean 'skip'"),
        ({"size": 257}, "data.size 257: digits are enlarged to at most 256"),
        ({"val_fraction": 1.0}, r"data.val_fraction 1.0 must be in \[0, 1\)"),
        ({"val_fraction": -0.1}, "data.val_fraction"),
        ({"val_fraction": float("nan")}, "data.val_fraction"),
        ({"mean": [0.5]}, "data.mean has 1 values and data.std has 3, the images have 1 channel$"),
        ({"std": [0.5, 0.5, 0.0]}, r"data.std \[0.5, 0.5, 0.0\] must be above 0"),
        ({}, "data.mean has 3 values .* 3, the images have 1 channel$"),
    ],
)
def test_values_out_of_range(config, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        load_data(config(_target_="dqnet.data.digits.load", **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_are_complete(path):
    composed = OmegaConf.merge(OmegaConf.structured(DataConfig), OmegaConf.load(path))
    assert not OmegaConf.missing_keys(composed)
    assert callable(_resolve(composed._target_))
    assert len(composed.mean) == len(composed.std)


def test_shipped_digits_are_normalised():
    shipped = OmegaConf.load(CONF / "digits.yaml")
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataConfig), shipped))
    config.batch_size, config.val_fraction, config.crop_padding = 1437, 0.0, 0
    ((images, labels),) = loaders(load_data(config), config, seed=0).train
    assert images.shape == (1437, 1, 8, 8)
    assert labels.shape == (1437,)
    assert abs(images.mean()) < 0.01
    assert abs(images.std() - 1) < 0.01
