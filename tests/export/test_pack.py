"""A packed network has the bytes that the summary says, and reads back bit for bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dqnet.errors import UserError
from dqnet.export.pack import main, pack
from dqnet.export.packed import load_packed, payload_bytes

UNTRAINED = ("trainer.epochs=0", "quant.calibration.images=60")
METHODS = {
    "none": ["quant=none"],
    "dorefa": ["quant=dorefa", "quant.widths=[1,2,5]"],
    "pact": ["quant=pact", "quant.widths=[4]", "quant.first_last=8"],
    "lsq": ["quant=lsq", "quant.widths=[1,3]"],
    "affine": ["quant=affine", "quant.widths=[8]", "quant.first_last=8"],
    "symmetric": ["quant=symmetric", "quant.widths=[w4a8]"],
    "minifloat": ["quant=minifloat", "quant.widths=[e2m1,e4m3,float16]"],
    "block": ["quant=minifloat", "quant.widths=[we3m2a8]", "quant.input.quantizer=affine",
              "+quant.weight.options.granularity=block"],
    "fixed_point": ["quant=fixed_point", "quant.widths=[4]"],
    "qnn": ["quant=qnn", "quant.widths=[w1a2]"],
    "lsq_plus": ["quant=lsq_plus", "quant.widths=[3]"],
    "folded": ["quant=affine", "quant.widths=[8]", "quant.fold_batch_norm=corrected"],
    "winograd": ["quant=affine", "quant.widths=[8]", "quant.winograd.tile=4",
                 "quant.fold_batch_norm=corrected"],
    "nf4": ["quant=nf4", "quant.widths=[w3a8,w4a8]"],
    "power_of_two": ["quant=power_of_two"],
    "codebook": ["quant=codebook", "quant.widths=[2,4]"],
    "smart_deal": ["quant=smart_deal", "quant.weight.options.sparsity=0.3"],
}  # fmt: skip


@pytest.fixture(scope="module")
def untrained(run):
    runs = {}

    def start(name):
        if name not in runs:
            runs[name] = run(*UNTRAINED, *METHODS[name])
        return runs[name]

    return start


@pytest.mark.parametrize("name", METHODS)
def test_what_is_read_back_answers_the_same_and_is_as_large_as_the_summary_says(
    name, untrained, tmp_path
):
    done = untrained(name)
    packed = pack(str(done.folder), tmp_path / "small.safetensors")
    assert packed.same and packed.images == 60
    assert packed.weight_bytes == done.summary["weight_bytes"]
    assert packed.weight_bytes == sum(t.nbytes for t in load_file(packed.path).values())


def test_the_comparison_can_fail(untrained, tmp_path, monkeypatch):
    done = untrained("affine")

    def damaged(path, console):
        model = load_packed(path, console)
        with torch.no_grad():
            model.backbone.linear.bias[0] += 1e-3
        return model

    monkeypatch.setattr("dqnet.export.pack.load_packed", damaged)
    assert not pack(str(done.folder), tmp_path / "small.safetensors").same
    with pytest.raises(SystemExit, match="is not the network that was packed"):
        main([str(done.folder), str(tmp_path / "small.safetensors")])


def test_the_file_is_read_by_its_description_alone(untrained, tmp_path):
    """Codes, scales and zero points as the docstring of dqnet.export.packed describes them."""
    done = untrained("affine")
    path = tmp_path / "small.safetensors"
    pack(str(done.folder), path)
    with safe_open(path, "np") as file:
        described = json.loads(file.metadata()["dqnet"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    state = done.checkpoint("best.pt")["model"]
    assert len(described["weights"]) > 5
    for entry in described["weights"]:
        name = f"{entry['layer']}.weight.{entry['format']}"
        assert entry["format"] == "8" and entry["table"] is None
        codes = tensors[f"{name}.codes"].astype(np.int64).reshape(entry["shape"]) + entry["offset"]
        scale = tensors[f"{name}.scale"]
        values = (codes - tensors.get(f"{name}.zero_point", 0)) * scale
        weight = state[f"{entry['layer']}.weight"].numpy()
        assert (np.abs(values - weight) <= 0.51 * scale).all()
    assert not any(name.endswith(".weight_quantizer.low") for name in tensors)


def test_the_command_says_that_the_logits_are_the_same(untrained, capsys):
    folder = untrained("nf4").folder
    main([str(folder)])
    printed = capsys.readouterr().out
    assert "same logits on 60 images: yes" in printed
    assert payload_bytes(folder / "packed.safetensors") == untrained("nf4").summary["weight_bytes"]
    found = json.loads((folder / "packed.json").read_text())
    assert found["same_logits"] and found["coding"] == "none"
    assert found["stages"]["coded"] == untrained("nf4").summary["weight_bytes"]


def test_a_trained_network_is_packed_with_its_average(run, tmp_path):
    done = run("quant=lsq", "quant.widths=[2,4]", "trainer.ema=0.9")
    assert pack(str(done.folder), tmp_path / "small.safetensors").same


@pytest.mark.parametrize(("name", "coding"), [("dorefa", "range"), ("affine", "huffman")])
def test_a_coded_file_answers_the_same_and_is_smaller(name, coding, untrained, tmp_path, capsys):
    pytest.importorskip("constriction")
    done = untrained(name)
    path = tmp_path / "small.safetensors"
    main([str(done.folder), str(path), "--coding", coding])
    printed = capsys.readouterr().out
    assert "same logits on 60 images: yes" in printed
    assert payload_bytes(path) < done.summary["weight_bytes"]
    with safe_open(path, "np") as file:
        assert set(file.keys()) == {"content", "description"}
        assert payload_bytes(path) == file.get_tensor("content").nbytes
    assert path.stat().st_size < payload_bytes(path) + 8000
    rows = {line.split()[1]: line.split()[3] for line in printed.splitlines() if "│" in line}
    state = done.checkpoint("best.pt")["model"]
    floats = 4 * sum(
        value.numel()
        for key, value in state.items()
        if key.startswith("backbone.") and "_quantizer" not in key and "affine" not in key
        and not key.endswith("num_batches_tracked")
    )  # fmt: skip
    assert rows["float"] == f"{floats:,}" and rows["file"] == f"{path.stat().st_size:,}"


@pytest.mark.parametrize("coding", ["none", "sparse"])
def test_damage_anywhere_is_one_line(coding, untrained, tmp_path):
    whole, path = tmp_path / "whole.safetensors", tmp_path / "damaged.safetensors"
    pack(str(untrained("nf4").folder), whole, coding=coding)
    content = whole.read_bytes()
    places = [4, 9, 30, 60, 200, 2000, 9000, len(content) // 2, len(content) - 1]
    damaged = [content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :] for i in places]
    damaged += [content[:i] for i in (0, 7, 100, len(content) // 2, len(content) - 1)]
    damaged += [content + b"0", b"0" + content]
    for bad in damaged:
        path.write_bytes(bad)
        with pytest.raises(UserError, match=r"damaged|cannot be read|not a packed") as raised:
            load_packed(path)
        assert "\n" not in str(raised.value)


def test_a_file_of_the_first_layout_is_read(untrained, tmp_path):
    path, old = tmp_path / "small.safetensors", tmp_path / "old.safetensors"
    pack(str(untrained("affine").folder), path)
    with safe_open(path, "pt") as file:
        described = json.loads(file.metadata()["dqnet"]) | {"version": 1}
    save_file(load_file(path), old, metadata={"dqnet": json.dumps(described)})
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(load_packed(old)(x).logits, load_packed(path)(x).logits)


def test_a_later_layout_is_refused(untrained, tmp_path):
    path, new = tmp_path / "small.safetensors", tmp_path / "new.safetensors"
    pack(str(untrained("affine").folder), path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    described = json.loads(metadata["dqnet"]) | {"version": 9}
    save_file(load_file(path), new, metadata=metadata | {"dqnet": json.dumps(described)})
    with pytest.raises(UserError, match="has layout 9, this program reads up to 2"):
        load_packed(new)


def test_an_unknown_coding_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match="error: unknown coding 'zip'; valid: auto, huf") as raised:
        main([str(tmp_path), "--coding", "zip"])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), (b"not a file", "cannot be read"), ({}, "is not a packed network")],
)
def test_other_files_are_refused_in_a_line(content, message, tmp_path):
    path = tmp_path / "file.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(UserError, match=message) as raised:
        load_packed(path)
    assert "\n" not in str(raised.value)


def test_a_run_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"error: .*best\.pt") as raised:
        main([str(tmp_path)])
    assert "\n" not in str(raised.value)
