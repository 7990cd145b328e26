"""Weights from files: other layouts, other models, damaged files, files with code."""

import argparse
import os
import pickle
from collections import OrderedDict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.utils import CheckpointSaver, ModelEmaV3
from tiny import same
from torch import nn
from torch.optim.swa_utils import AveragedModel

from dqnet.errors import UserError
from dqnet.training.build import build_model, create_float_model
from dqnet.training.checkpoint import load_checkpoint
from dqnet.training.weights import load_float_weights, read_checkpoint


@pytest.fixture
def create(config):
    """``create(name=..., classes=..., channels=...)``: a float model with random weights."""

    def make(name="resnet8_cifar", classes=10, channels=1):
        return create_float_model(config(f"model.name={name}").model, classes, channels)

    return make


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


#: what is not a tensor and yet stands in training programs' checkpoints
OBJECTS = {
    "args": argparse.Namespace(lr=0.1, output=Path("runs")),
    "best_acc": np.float64(0.9),
    "hyper_parameters": {"optimizer": partial(torch.optim.SGD, lr=0.1), "net": nn.Linear(2, 2)},
}

LAYOUTS = {
    "bare": lambda state: state,
    "published": lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
    "wrapped": lambda state: {"state_dict": state, "best_prec1": 92.6},
    "model": lambda state: {"model": state, "epoch": 3},
    "average": lambda state: {"model": {k: v * 0 for k, v in state.items()}, "ema": state},
    "cifar": lambda state: {"net": prefixed("module.", state), "acc": 93.1, "epoch": 199},
    "tutorial": lambda state: {"model_state_dict": state, "optimizer_state_dict": {}, "loss": 0.1},
    "compiled": lambda state: prefixed("_orig_mod.", state),
    "compiled, then parallel": lambda state: {"model": prefixed("module._orig_mod.", state)},
    "parallel, then compiled": lambda state: prefixed("_orig_mod.module.", state),
    "one layer compiled": lambda state: {
        k.replace("layer2.", "layer2._orig_mod."): v for k, v in state.items()
    },
    "Lightning": lambda state: {
        "pytorch-lightning_version": "2.5.0",
        "state_dict": prefixed("model.", state),
        "loops": {},
        "hyper_parameters": {"lr": 0.1},
    },
    "Lightning, compiled": lambda state: {"state_dict": prefixed("net._orig_mod.", state)},
    "Hugging Face": lambda state: prefixed("timm_model.", state),
    "torchvision": lambda state: {
        "model": {k: v * 0 for k, v in state.items()},
        "model_ema": {"n_averaged": torch.tensor(7), **prefixed("module.", state)},
        "args": argparse.Namespace(lr=0.1, model="resnet18"),
    },
    "timm": lambda state: {
        "state_dict": {k: v * 0 for k, v in state.items()},
        "state_dict_ema": prefixed("_orig_mod.", state),
        "args": argparse.Namespace(lr=0.1),
    },
    "of a converted model, parallel": lambda state: {
        **prefixed("module.backbone.", state),
        "module.backbone.layer1.0.conv1.weight_quantizer.step": torch.ones(1),
        "module.controller.head.weight": torch.ones(1),
    },
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


def test_checkpoints_with_objects_are_read_without_them(create, tmp_path):
    theirs, ours = create(), create()
    allowed = set(torch.serialization.get_safe_globals())
    torch.save({"state_dict": theirs.state_dict(), **OBJECTS}, tmp_path / "w.ckpt")
    load_float_weights(ours, tmp_path / "w.ckpt")
    assert same(theirs.state_dict(), ours.state_dict())
    with pytest.raises(UserError, match="other Python objects than tensors"):
        read_checkpoint(tmp_path / "w.ckpt")
    assert set(torch.serialization.get_safe_globals()) == allowed


@pytest.mark.parametrize("averaged", [False, True])
def test_timms_checkpoint_loads_as_by_timm(create, tmp_path, averaged):
    net, by_timm, ours = create(), create(), create()
    ema = ModelEmaV3(net, decay=0.5) if averaged else None
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1)
    folder = str(tmp_path)
    CheckpointSaver(
        net, torch.optim.SGD(net.parameters(), 0.1), argparse.Namespace(model="m", lr=0.1), ema,
        checkpoint_dir=folder, recovery_dir=folder,
    ).save_checkpoint(0, metric=1.0)  # fmt: skip
    path = tmp_path / "last.pth.tar"
    timm.models.load_checkpoint(by_timm, str(path), weights_only=True)
    load_float_weights(ours, path)
    assert same(by_timm.state_dict(), ours.state_dict())
    assert same(net.state_dict(), ours.state_dict()) != averaged


def test_average_of_weights_by_torch(create, tmp_path):
    theirs, ours = create(), create()
    wrapped = torch.compile(nn.DataParallel(theirs))  # compiles nothing before it is called
    torch.save(AveragedModel(wrapped).state_dict(), tmp_path / "w.pt")
    load_float_weights(ours, tmp_path / "w.pt")
    assert same(theirs.state_dict(), ours.state_dict())


def test_safetensors_load_as_by_timm(create, tmp_path):
    theirs, by_timm, ours = create(), create(), create()
    path = tmp_path / "model.safetensors"
    save_file({k: v.clone(memory_format=torch.contiguous_format) for k, v in
               theirs.half().state_dict().items()}, path)  # fmt: skip
    timm.models.load_checkpoint(by_timm, str(path))
    load_float_weights(ours, path)
    assert same(by_timm.state_dict(), ours.state_dict())
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="not a readable safetensors file") as caught:
        load_float_weights(ours, path)
    assert "\n" not in str(caught.value)


class Wrapped(nn.Module):
    """A float model whose own names begin with what is a prefix elsewhere."""

    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(OrderedDict(module=nn.Linear(2, 2)))


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_a_prefix_that_is_the_models_own_stays(tmp_path, prefix):
    theirs, ours = Wrapped(), Wrapped()
    torch.save(prefixed(prefix, theirs.state_dict()), tmp_path / "w.pt")
    load_float_weights(ours, tmp_path / "w.pt")
    assert same(dict(theirs.state_dict()), dict(ours.state_dict()))


def test_a_prefix_of_some_names_stays(create, tmp_path):
    state = create().state_dict()
    some = {("module." if k.startswith("layer") else "") + k: v for k, v in state.items()}
    torch.save(some, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"another model: it lacks 'layer1.* has 'module\.layer1"):
        load_float_weights(create(), tmp_path / "w.pt")


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


@pytest.mark.parametrize("place", ["args", "model", None])
def test_starting_weights_with_code_do_not_run_it(create, tmp_path, place):
    path, trap = tmp_path / "w.pt", tmp_path / "it ran"
    state = create().state_dict()
    content = {"state_dict": state, place: Payload(trap)} if place else Payload(trap)
    torch.save(content, path)
    with pytest.raises(UserError, match="not a readable PyTorch checkpoint"):
        load_float_weights(create(), path)
    assert not trap.exists()


class Evaluated(Payload):
    """The same by a function that no list of modules forbids."""

    def __reduce__(self):
        return eval, (f"__import__('os').mkdir({self.path!r})",)


def test_a_function_in_starting_weights_is_not_called(create, tmp_path):
    path, trap = tmp_path / "w.pt", tmp_path / "it ran"
    theirs, ours = create(), create()
    torch.save({"state_dict": theirs.state_dict(), "args": Evaluated(trap)}, path)
    load_float_weights(ours, path)
    assert same(theirs.state_dict(), ours.state_dict())
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists()


@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: {"model": net, "epoch": 3}])
def test_a_pickled_model_is_refused(create, tmp_path, wrap):
    torch.save(wrap(create()), tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"write the weights alone, torch\.save\(model\.state_dict"):
        load_float_weights(create(), tmp_path / "w.pt")


def test_a_dictionary_within_itself_ends(create, tmp_path):
    content = {"epoch": 3}
    content["model"] = content
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"another model: it lacks 'conv1\.weight'"):
        load_float_weights(create(), tmp_path / "w.pt")


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
