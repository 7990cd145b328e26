"""``form=exact``: what two runtimes make of the file is what the simulated network computes."""

import json

import numpy as np
import onnx
import pytest
import torch
from networks import FLOAT8, STATIC, converted, images
from test_lower import assert_close

import dqnet
from dqnet.errors import UserError
from dqnet.export.interpret import interpret

RUNTIMES = ("onnxruntime", "openvino")
DYNAMIC = {"quantizer": "lsq", "widths": [2, 3, 4], "shared_until": "layer1"}


@pytest.fixture(scope="module")
def static(tmp_path_factory):
    """``static("lsq3")``: a network and its file."""
    kept = {}

    def export(how):
        if how not in kept:
            model = converted(**{**STATIC, **FLOAT8}[how])
            path = tmp_path_factory.mktemp("exact") / f"{how}.onnx"
            kept[how] = model, path, dqnet.export_onnx(model, path)
        return kept[how]

    return export


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory):
    model = converted("resnet8_cifar", **DYNAMIC)
    path = tmp_path_factory.mktemp("exact") / "dynamic.onnx"
    preprocessing = dqnet.Preprocessing(16, (0.5, 0.4, 0.3), (0.2, 0.2, 0.3))
    dqnet.export_onnx(model, path, class_names=list("abcde"), preprocessing=preprocessing)
    return model, path


@pytest.mark.parametrize("how", [*STATIC, *FLOAT8])
@pytest.mark.parametrize("runtime", RUNTIMES)
@torch.no_grad()
def test_static_networks(how, runtime, static):
    model, path, graph = static(how)
    x = images(8)
    logits, routing = dqnet.load_exported(path, runtime, threads=1)(x)
    assert_close(logits.numpy(), model(x).logits)
    assert_close(interpret(graph, x.numpy())["logits"], logits)
    assert routing.shape == (8, 0, 1)


@pytest.mark.parametrize("runtime", RUNTIMES)
@torch.no_grad()
def test_dynamic_networks(runtime, dynamic):
    model, path = dynamic
    x = images(9)
    expected = model(x)
    net = dqnet.load_exported(path, runtime, threads=2)  # images are shared out
    logits, routing = net(x)
    assert torch.equal(routing, expected.routing)
    assert_close(logits.numpy(), expected.logits)

    other = routing.roll(1, 0).flip(2)
    logits, used = net(x, routing=other)
    assert torch.equal(used, other)
    assert_close(logits.numpy(), model(x, routing=other).logits)


@torch.no_grad()
def test_one_file_serves_every_budget(dynamic):
    """λ as an input chooses what the network would at that λ."""
    from dqnet.evaluation.budget import chosen_at

    model, path = dynamic
    x, net = images(9), dqnet.load_exported(path, "onnxruntime")
    scores = model(x, with_scores=True).scores
    seen = set()
    for price in (-30.0, -1.0, 0.0, 1.0, 30.0):
        chosen = net(x, budget_lambda=price).routing.argmax(-1)
        assert torch.equal(chosen, chosen_at(model, scores, price))
        seen.add(tuple(chosen.flatten().tolist()))
    assert len(seen) > 3


def test_the_file_says_what_it_is(dynamic):
    path = dynamic[1]
    (entry,) = onnx.load(path).metadata_props
    own = json.loads(entry.value)
    assert (own["form"], own["precisions"], own["split_point"]) == ("exact", [2, 3, 4], "layer1")
    assert own["class_names"] == list("abcde") and own["preprocessing"]["std"] == [0.2, 0.2, 0.3]
    assert own["layers"]["layer2.0.conv1"] == [2, 3, 4] and own["layers"]["conv1"] == []
    assert own["grids"]["layer2.0.conv1.input.2"]["high"] == 3


def test_it_is_standard_onnx(static, dynamic):
    for path in (static("lsq3")[1], dynamic[1]):
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        assert [(own.domain, own.version) for own in model.opset_import] == [("", 21)]


@pytest.mark.parametrize("runtime", RUNTIMES)
@torch.no_grad()
def test_packed_weights_answer_the_same_and_are_smaller(runtime, static, tmp_path):
    model, whole, _ = static("lsq3")
    small = tmp_path / "small.onnx"
    dqnet.export_onnx(model, small, packed=True)
    x = images(8)
    ours, theirs = (dqnet.load_exported(path, runtime)(x).logits for path in (small, whole))
    assert torch.equal(ours, theirs)

    def weight_bytes(path):
        tensors = onnx.load(path).graph.initializer
        return sum(len(own.raw_data or own.int32_data) for own in tensors if "codes" in own.name)

    def kinds(path):
        return {own.data_type for own in onnx.load(path).graph.initializer if "codes" in own.name}

    assert kinds(whole) == {onnx.TensorProto.INT8} and kinds(small) == {onnx.TensorProto.INT4}
    assert weight_bytes(small) <= weight_bytes(whole) / 2 + 4


@pytest.mark.parametrize("how", FLOAT8)
def test_small_floats_are_stored_as_such(how, static, tmp_path):
    model, path, _ = static(how)
    kind = {"e4m3": onnx.TensorProto.FLOAT8E4M3FN, "e5m2": onnx.TensorProto.FLOAT8E5M2}[how]
    stored = [own.data_type for own in onnx.load(path).graph.initializer if "codes" in own.name]
    assert stored == [kind] * 3
    with pytest.raises(UserError, match="weights of small floats, which form=qonnx has not"):
        dqnet.export_onnx(model, tmp_path / "model.onnx", "qonnx")
    whole = {"first_last": f"w{how}a8", "residual": 8}
    with pytest.raises(UserError, match="weights of small floats, which form=integer has not"):
        dqnet.export_onnx(
            converted("foldable", **FLOAT8[how], **whole), tmp_path / "model.onnx", "integer"
        )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("dynamic.onnx", None),
        ("missing.onnx", "missing.onnx does not exist"),
        ("damaged.onnx", "is damaged, or not an ONNX file"),
        ("empty.onnx", "is damaged, or not an ONNX file"),
        ("foreign.onnx", "is not a network that dqnet.export_onnx wrote"),
        ("folder", "cannot be read"),
    ],
)
def test_files_that_are_not_ours(given, message, dynamic, tmp_path):
    content = dynamic[1].read_bytes()
    (tmp_path / "dynamic.onnx").write_bytes(content)
    (tmp_path / "damaged.onnx").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.onnx").write_bytes(b"")
    foreign = onnx.load_from_string(content)
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    (tmp_path / "folder").mkdir()
    if message is None:
        assert dqnet.load_exported(tmp_path / given).dynamic
        return
    with pytest.raises(UserError, match=message) as raised:
        dqnet.load_exported(tmp_path / given)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(2, 3, 16, 20), r"shape \[2, 3, 16, 20\]; the network takes \[N, 3, 16, 16\]"),
        (torch.zeros(3, 16, 16), r"shape \[3, 16, 16\]; the network takes"),
        (torch.zeros(0, 3, 16, 16), r"shape \[0, 3, 16, 16\]; the network takes"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "images are uint8; give float32"),
        (np.zeros((1, 3, 16, 16)), "images are float64; give float32"),
        ("cat.png", "images are str; give float32"),
    ],
    ids=str,
)
def test_images_that_do_not_fit(given, message, dynamic):
    with pytest.raises(UserError, match=message):
        dqnet.load_exported(dynamic[1])(given)


def test_routings_that_do_not_fit(dynamic, static):
    x = images(2)
    with pytest.raises(UserError, match=r"shape \[2, 3, 3\], it must be \[2, 4, 3\]"):
        dqnet.load_exported(dynamic[1])(x, routing=torch.zeros(2, 3, 3))
    net = dqnet.load_exported(static("lsq3")[1])
    with pytest.raises(UserError, match="the network is static"):
        net(x, budget_lambda=1.0)


@pytest.mark.parametrize("package", ["onnxruntime", "openvino", "onnx"])
def test_what_is_not_installed_is_named_with_its_extra(package, dynamic, monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    extra = "openvino" if package == "openvino" else "deploy"
    runtime = "onnxruntime" if package == "onnx" else package
    with pytest.raises(UserError, match=rf"{package} is not installed: pip install dqnet\[{extra}"):
        dqnet.load_exported(dynamic[1], runtime)
    if package == "onnx":
        with pytest.raises(UserError, match="onnx is not installed"):
            dqnet.export_onnx(dynamic[0], tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"path": "."}, r"is a folder: name a file in it"),
        ({"path": "missing/model.onnx"}, "missing is not a folder"),
        ({"form": "int"}, "unknown form 'int'"),
    ],
)
def test_exports_that_cannot_be(how, message, dynamic, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        dqnet.export_onnx(dynamic[0], **{"path": "model.onnx", **how})


@pytest.mark.parametrize(
    ("how", "message"),
    [({"runtime": "tvm"}, "unknown runtime 'tvm'"), ({"threads": 0}, "threads 0 must be at")],
)
def test_settings_of_a_runtime(how, message, dynamic):
    with pytest.raises(UserError, match=message):
        dqnet.load_exported(dynamic[1], **how)


def test_importing_the_package_loads_no_runtime():
    import subprocess
    import sys

    code = "import sys, dqnet; print({'onnx', 'onnxruntime', 'openvino'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
