"""``eval.py export=onnx``: the files beside an evaluation, and what they say."""

import json

import onnx
import pytest

import dqnet
from dqnet.config import ExportConfig
from dqnet.errors import UserError

RESIDUAL = ("quant.first_last=8", "quant.residual=8")
#: until 9 of 10 answers are right: logits of an untrained network lie too close to each other
TRAINED = (*RESIDUAL, "trainer.epochs=8")


@pytest.fixture(scope="module")
def static(run):
    return run("quant=lsq", "quant.widths=[4]", *TRAINED)


@pytest.fixture(scope="module")
def dynamic(run):
    return run("quant=lsq", "quant.widths=[3,4]", *TRAINED)


@pytest.mark.parametrize("form", ["exact", "integer"])
@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_a_trained_network_is_exported_and_compared(kind, form, request, measure):
    done = request.getfixturevalue(kind)
    results = measure(done.folder, export=ExportConfig("onnx", form))
    content = json.loads((done.folder / "export.json").read_text())
    assert (content["form"], content["images"]) == (form, 60)
    assert content["same_predictions"] >= (0.98 if form == "exact" else 0.9)
    assert content["simulated_top1"] == pytest.approx(results["top1"])
    assert content["file_bytes"] == (done.folder / "model.onnx").stat().st_size
    assert ("rounded_biases" in content) == (form == "integer")
    if form == "integer":
        rounded = content["rounded_biases"]
        for name in ("same_predictions", "close_logits", "same_routing"):
            assert rounded[name] == 1, name
        assert rounded["simulated_top1"] == rounded["top1"] == content["top1"]
    net = dqnet.load_exported(done.folder / "model.onnx")
    assert net.metadata["class_names"] == list("0123456789")
    assert net.metadata["preprocessing"]["size"] == 8
    assert net.dynamic == (kind == "dynamic")


def test_the_same_settings_that_packing_knows(static, measure):
    measure(static.folder, export=ExportConfig("onnx", packed=True, runtime="onnxruntime"))
    kinds = {own.data_type for own in onnx.load(static.folder / "model.onnx").graph.initializer}
    assert onnx.TensorProto.INT4 in kinds


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"form": "fast"}, "unknown export.form 'fast'"),
        ({"name": "tflite"}, "unknown export.name 'tflite'"),
        ({"runtime": "tvm"}, "unknown export.runtime 'tvm'"),
    ],
)
def test_settings_that_do_not_exist(setting, message, static, measure):
    with pytest.raises(UserError, match=message):
        measure(static.folder, export=ExportConfig(**setting))


def test_a_network_in_full_precision_is_refused(run, measure):
    with pytest.raises(UserError, match="in full precision: convert it first"):
        measure(run("quant=none").folder, export=ExportConfig("onnx"))
