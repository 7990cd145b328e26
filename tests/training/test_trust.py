"""A stranger's checkpoint is data: it runs nothing, imports nothing and fetches nothing."""

import copy
import os
import socket
import sys

import pytest
import torch

from dqnet.config import EvalDataConfig
from dqnet.errors import UserError


@pytest.fixture(scope="module")
def trained(run):
    return run("trainer.epochs=0").checkpoint("best.pt")


@pytest.fixture
def stranger(trained, tmp_path):
    """``stranger(section={key: value})``: a checkpoint whose configuration says something else."""

    def make(**sections):
        content = copy.deepcopy(trained)
        for section, changes in sections.items():
            content["config"][section] |= changes
        torch.save(content, tmp_path / "stranger.pt")
        return tmp_path / "stranger.pt"

    return make


@pytest.fixture
def no_network(monkeypatch):
    def connect(self, address):
        raise AssertionError(f"a connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: connect(None, args))


class Trap:
    """Unpickled with code allowed, it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("target", ["trap.load", "dqnet.data.trap.load", "dqnet.data..trap.load"])
def test_no_module_of_its_choice_is_imported(stranger, measure, tmp_path, monkeypatch, target):
    trace = tmp_path / "it ran"
    (tmp_path / "trap.py").write_text(f"import os\nos.mkdir({str(trace)!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trap", raising=False)
    with pytest.raises(UserError, match=f"data._target_ '{target}' is not a data set"):
        measure(stranger(data={"_target_": target}))
    assert not trace.exists()
    assert "trap" not in sys.modules
    import trap  # noqa: F401  the trap works

    assert trace.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        {"checkpoint_path": "PATH"},
        {"pretrained": True, "pretrained_cfg": {"file": "PATH"}},
        {"pretrained_cfg_overlay": {"file": "PATH"}},
        {"pretrained_cfg": {"url": "http://127.0.0.1/w.pt"}},
        {"pretrained_custom_load": True},
        {"cache_dir": "PATH"},
    ],
)
def test_timm_reads_no_file_of_its_choice(stranger, measure, tmp_path, no_network, arguments):
    trace = tmp_path / "it ran"
    torch.save(Trap(trace), tmp_path / "w.pt")
    path = str(tmp_path / "w.pt")

    def filled(value):
        if isinstance(value, dict):
            return {key: filled(child) for key, child in value.items()}
        return path if value == "PATH" else value

    first = next(iter(arguments))
    with pytest.raises(UserError, match=rf"model\.args\.{first} is not allowed"):
        measure(stranger(model={"args": filled(arguments)}))
    assert not trace.exists()
    torch.load(path, weights_only=False)  # the trap works
    assert trace.exists()


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18.a1_in1k", "local-dir:/tmp", "hf_hub:a/b"])
def test_a_model_has_a_name_and_no_address(stranger, measure, no_network, name):
    with pytest.raises(UserError, match=f"unknown model '{name}'"):
        measure(stranger(model={"name": name}))


def test_pretrained_weights_are_not_fetched_for_an_evaluation(stranger, measure, no_network):
    changes = {"name": "resnet18", "pretrained": True}
    with pytest.raises(UserError, match=r"stranger\.pt is a checkpoint of another model"):
        measure(stranger(model=changes))


def test_float_weights_of_its_choice_are_not_read(stranger, measure, tmp_path):
    """Of the network before this one, which may be long gone."""
    torch.save(Trap(tmp_path / "it ran"), tmp_path / "w.pt")
    measure(stranger(model={"checkpoint_path": str(tmp_path / "w.pt")}))
    assert not (tmp_path / "it ran").exists()


def test_data_is_fetched_only_for_who_asks(stranger, measure, tmp_path, no_network):
    path = stranger(
        data={"_target_": "dqnet.data.cifar.load10", "size": 32, "download": True, "root": "."}
    )
    data = EvalDataConfig(root=str(tmp_path / "data"))
    with pytest.raises(UserError, match=r"CIFAR10 .* is missing .*; data\.download=true gets it"):
        measure(path, data=data)
    assert not (tmp_path / "data").exists()


def test_the_environment_is_not_read(stranger, measure, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    with pytest.raises(UserError, match=r"logger\.project=\$\{oc\.env:SECRET\}") as caught:
        measure(stranger(logger={"project": "${oc.env:SECRET}"}))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "section, changes, message",
    [
        ("quant", {"quantizer": "os.system"}, "unknown quantizer 'os.system'"),
        (
            "quant",
            {"options": {"__class__": "os.system"}},
            "unknown option of DoReFaWeight and DoReFaInput '__class__'",
        ),
        ("quant", {"controller": {"_target_": "os.system"}}, "another version: .*_target_"),
        ("model", {"args": {"_target_": "os.system"}}, "model.args does not fit"),
        ("model", {"args": {"block": "os.system"}}, "model.args does not fit"),
        ("loss", {"penalty": "os.system"}, "unknown loss.penalty 'os.system'"),
        ("optim", {"_target_": "os.system"}, "another version: .*_target_"),
    ],
)
def test_nothing_else_names_what_is_called(
    stranger, measure, monkeypatch, section, changes, message
):
    def system(command):
        raise AssertionError(f"it ran {command}")

    monkeypatch.setattr(os, "system", system)
    with pytest.raises(UserError, match=message):
        measure(stranger(**{section: changes}))
