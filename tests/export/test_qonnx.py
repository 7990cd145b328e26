"""``form=qonnx``: what QONNX's own executor makes of the file is what the network computes."""

import json

import numpy as np
import onnx
import pytest
import torch
from networks import STATIC, converted, images
from test_lower import assert_close

import dqnet
from dqnet.errors import UserError
from dqnet.export.qonnx import integer_of


@pytest.mark.parametrize("how", STATIC)
@torch.no_grad()
def test_its_executor_answers_as_the_simulated_network(how, tmp_path):
    model, path, x = converted(**STATIC[how]), tmp_path / "model.onnx", images(4)
    dqnet.export_onnx(model, path, "qonnx")
    net = dqnet.load_exported(path)
    assert net.runtime == "qonnx"
    assert_close(net(x).logits.numpy(), model(x).logits)


@torch.no_grad()
def test_quantizers_between_layers(tmp_path):
    how = {"quantizer": ("symmetric", "affine"), "widths": ["w4a8"], "first_last": 8, "residual": 8}
    model, path, x = converted("foldable", **how), tmp_path / "model.onnx", images(4)
    dqnet.export_onnx(model, path, "qonnx")
    assert_close(dqnet.load_exported(path)(x).logits.numpy(), model(x).logits)


@pytest.mark.parametrize(("how", "bits"), [("lsq3", 3), ("symmetric", 4), ("folded", 4)])
def test_weights_have_the_bits_of_their_quantizer(how, bits, tmp_path):
    path = tmp_path / "model.onnx"
    dqnet.export_onnx(converted(**STATIC[how]), path, "qonnx")
    graph = onnx.load(path).graph
    constants = {own.name: onnx.numpy_helper.to_array(own) for own in graph.initializer}
    found = [
        constants[node.input[3]]
        for node in graph.node
        if node.op_type == "Quant" and node.input[0] in constants and node.name.startswith("conv3")
    ]
    assert found == [bits]
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1


def test_one_bit_is_bipolar(tmp_path):
    path = tmp_path / "model.onnx"
    dqnet.export_onnx(converted(**STATIC["dorefa1"]), path, "qonnx")
    assert "BipolarQuant" in {node.op_type for node in onnx.load(path).graph.node}


@pytest.mark.parametrize(
    ("codes", "bits", "expected"),
    [
        ([[0, 7]], 8, (0, 3, False, False)),
        ([[0, 1]], 8, (0, 1, False, False)),
        ([[-4, 3]], 8, (0, 3, True, False)),
        ([[-127, 127]], 8, (0, 8, True, True)),
        ([[-128, 127]], 8, (0, 8, True, False)),
        ([[-200, 55]], 8, (200, 8, False, False)),
        ([[-9, 6]], 4, (9, 4, False, False)),
        ([[-7, 7]], 3, (0, 4, True, True)),  # odd numbers, of DoReFa
    ],
    ids=str,
)
def test_the_integers_that_hold_codes(codes, bits, expected):
    own = integer_of(np.array(codes), bits)
    assert (own.zero_points.item(), *own[1:]) == expected


def test_dynamic_networks_are_refused(tmp_path):
    model = converted("resnet8_cifar", quantizer="lsq", widths=[2, 4])
    with pytest.raises(UserError, match="QONNX has no form of a dynamic network: export it with"):
        dqnet.export_onnx(model, tmp_path / "model.onnx", "qonnx")


def test_other_runtimes_do_not_run_it_and_it_runs_no_other_form(tmp_path):
    path, model = tmp_path / "model.onnx", converted(**STATIC["lsq3"])
    dqnet.export_onnx(model, path, "qonnx")
    with pytest.raises(UserError, match="is of form qonnx, which runtime=onnxruntime does not run"):
        dqnet.load_exported(path, "onnxruntime")
    dqnet.export_onnx(model, path)
    with pytest.raises(UserError, match="is of form exact, which runtime=qonnx does not run"):
        dqnet.load_exported(path, "qonnx")


def test_a_trained_network_is_exported_and_compared(run, command):
    folder = run("quant=lsq", "quant.widths=[3]").folder
    result = command("eval.py", f"checkpoint={folder}", "export=qonnx", "trainer.device=cpu")
    assert result.status == 0
    content = json.loads((folder / "export.json").read_text())
    assert (content["form"], content["runtime"], content["images"]) == ("qonnx", "qonnx", 60)
    assert content["same_predictions"] >= 0.95
