"""Weights from files: other layouts, other models, damaged files, files with code."""

import os
import pickle

import pytest
import torch
from tiny import same

from dqnet.engine.build import build_model, create_float_model
from dqnet.engine.checkpoint import load_checkpoint
from dqnet.engine.weights import load_float_weights, read_checkpoint
from dqnet.errors import UserError


@pytest.fixture
def create(config):
    """``create(name=..., classes=..., channels=...)``: a float model with random weights."""

    def make(name="resnet8_cifar", classes=10, channels=1):
        return create_float_model(config(f"model.name={name}").model, classes, channels)

    return make


LAYOUTS = {
    "bare": lambda state: state,
    "published": lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
    "wrapped": lambda state: {"state_dict": state, "best_prec1": 92.6},
    "model": lambda state: {"model": state, "epoch": 3},
    "average": lambda state: {"model": {k: v * 0 for k, v in state.items()}, "ema": state},
    "old": lambda state: {k: v for k, v in state.items() if "num_batches_tracked" not in k},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("zipped", [True, False])
def test_layouts_are_understood(create, tmp_path, layout, zipped):
    theirs, ours = create(), create()
    assert not same(theirs.state_dict(), ours.state_dict())
    content = LAYOUTS[layout](theirs.state_dict())
    torch.save(content, tmp_path / "w.th", _use_new_zipfile_serialization=zipped)
    load_float_weights(ours, tmp_path / "w.th")
    assert same(theirs.state_dict(), ours.state_dict())


def test_float_then_static_then_dynamic(run, config):
    """The recipe of the paper: each network starts with the one before."""

    def backbone(path, *overrides):
        chosen = config(f"model.checkpoint_path={path}", *overrides)
        model = build_model(chosen.model, chosen.quant, 10, (1, 8, 8))
        return {
            key.removeprefix("backbone."): value
            for key, value in model.state_dict().items()
            if "_quantizer." not in key and not key.startswith("controller.")
        }

    def best(result):
        return result.folder / "best.pt"

    first = run("quant=none")
    assert same(backbone(best(first), "quant.widths=[3]"), first.checkpoint("best.pt")["model"])
    second = run("quant.widths=[3]", f"model.checkpoint_path={best(first)}")
    third = run("quant=lsq", f"model.checkpoint_path={best(second)}")
    weights = backbone(best(third), "quant=none")
    expected = third.checkpoint("best.pt")["model"]
    assert same(weights, {key: expected[f"backbone.{key}"] for key in weights})
    assert weights.keys() == create_keys(config)


def create_keys(config):
    return create_float_model(config().model, 10, 1).state_dict().keys()


def test_average_of_a_run_is_what_the_next_one_starts_with(run, create):
    result = run("trainer.ema=0.5", "quant=none", "optim.lr=0.05")
    model = create()
    load_float_weights(model, result.folder / "best.pt")
    assert same(dict(model.state_dict()), result.checkpoint("best.pt")["ema"])


# What is refused


class Payload:
    """Unpickled with code allowed, it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("reader", [read_checkpoint, load_checkpoint])
@pytest.mark.parametrize("writer", ["torch", "legacy", "pickle"])
def test_file_with_code_is_refused_and_does_not_run(tmp_path, reader, writer):
    path, trap = tmp_path / "w.pt", tmp_path / "it ran"
    content = {"state_dict": Payload(trap), "config": {}, "model": {}}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "torch")
    with pytest.raises(UserError, match="not a readable PyTorch checkpoint") as caught:
        reader(path)
    assert not trap.exists()
    assert "weights_only" not in str(caught.value)
    # The trap works: with code allowed it does run.
    with path.open("rb") as file:
        pickle.load(file) if writer == "pickle" else torch.load(path, weights_only=False)
    assert trap.exists()


def damaged(content):
    """A file with this content."""
    return lambda path: path.write_bytes(content)


def truncated(share, zipped):
    def write(path):
        torch.save({"a": torch.ones(5000)}, path, _use_new_zipfile_serialization=zipped)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    return write


@pytest.mark.parametrize(
    "write, message",
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is a folder; name a file in it, such as best.pt"),
        (damaged(b""), "not a readable PyTorch checkpoint"),
        (damaged(b"hello, world\n"), "not a readable PyTorch checkpoint"),
        (damaged(b"\x89PNG\r\n\x1a\n\0\0\0"), "not a readable PyTorch checkpoint"),
        (damaged(bytes(range(256))), "not a readable PyTorch checkpoint"),
        (lambda path: torch.save([1, 2], path), "holds a list, not a checkpoint"),
        (lambda path: torch.save(torch.nn.ReLU(), path), "other Python objects than tensors"),
        *[
            (truncated(share, zipped), "not a readable PyTorch checkpoint")
            for share in (0.01, 0.3, 0.7, 0.99)
            for zipped in (True, False)
        ],
    ],
)
def test_unreadable_files(tmp_path, write, message):
    path = tmp_path / "w.pt"
    write(path)
    with pytest.raises(UserError, match=message) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "other, message",
    [
        ({"name": "resnet20_cifar"}, r"another model: it has 'layer1\.1\.conv1\.weight'"),
        ({"name": "resnet18"}, "another model: it lacks .* and has"),
        ({"classes": 7}, "classifies 7 classes, the data has 10"),
        ({"channels": 3}, r"'conv1\.weight' is \[16, 3, 3, 3\], it must be \[16, 1, 3, 3\]"),
    ],
)
def test_weights_of_another_model(create, tmp_path, other, message):
    torch.save(create(**other).state_dict(), tmp_path / "w.pt")
    model = create()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError, match=message):
        load_float_weights(model, tmp_path / "w.pt")
    assert same(dict(model.state_dict()), before)


@pytest.mark.parametrize("content", [{}, {0: torch.ones(2)}, {"state_dict": {}}, {"epoch": 3}])
def test_dictionary_without_weights(create, tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"another model: it lacks 'conv1\.weight'"):
        load_float_weights(create(), tmp_path / "w.pt")


@pytest.mark.parametrize(
    "content, message",
    [
        ({"conv1.weight": torch.ones(2)}, "was not written by train.py"),
        ({"state_dict": {}}, "was not written by train.py"),
        ({"config": {}, "model": {}}, "has format None; this version reads format 1"),
        ({"config": {}, "model": {}, "format": 99}, "has format 99"),
    ],
)
def test_checkpoint_that_train_py_did_not_write(tmp_path, content, message):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UserError, match=message):
        load_checkpoint(tmp_path / "w.pt")


# Models


def test_unknown_model(create):
    with pytest.raises(UserError, match=r"unknown model 'resnet8_cifr'; did you mean 'resnet8_cif"):
        create(name="resnet8_cifr")


@pytest.mark.parametrize("name", ["inception_v3", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("quant", ["quant=dorefa", "quant=none"])
def test_images_that_the_model_cannot_take(config, name, quant):
    chosen = config(f"model.name={name}", quant)
    with pytest.raises(UserError, match=rf"{name} cannot take images of 8 x 8 \(data\.size\)"):
        build_model(chosen.model, chosen.quant, 10, (1, 8, 8))


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            "+quant.options.foo=1",
            "unknown option of DoReFaWeight and DoReFaInput .foo.*quant.options",
        ),
        ("quant=pact quant.options.alpha_init=abc", "quant.options .*abc.* do not fit PACT"),
        ("+model.args.num_classes=3", "model.args does not fit resnet8_cifar"),
        ("model.pretrained=true", "no pretrained weights for resnet8_cifar"),
    ],
)
def test_arguments_that_do_not_fit(config, overrides, message):
    chosen = config(*overrides.split())
    with pytest.raises(UserError, match=message):
        build_model(chosen.model, chosen.quant, 10, (1, 8, 8))
