"""``form=integer``: every code of every layer is the reference interpreter's, bit for bit."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from networks import converted, images

import dqnet
from dqnet.errors import UserError
from dqnet.export.adapted import unsigned_weights
from dqnet.export.integer import to_integer
from dqnet.export.interpret import interpret
from dqnet.export.lower import lower

SMALL = {"first_last": 8, "residual": 8}
HOWS = {
    "resnet": ("resnet20_cifar", 32, {"quantizer": "lsq", "widths": [3]}),
    "wide": ("resnet18", 32, {"quantizer": "symmetric", "widths": [8]}),
    "mobile": ("mobilenetv2_100", 32, {"quantizer": ("symmetric", "affine"), "widths": [8]}),
    "varied": ("foldable", 16, {"quantizer": "lsq", "widths": ["w4a8"]}),
    "reused": ("g_ghost_resnet20_cifar", 16, {"quantizer": "lsq", "widths": [4]}),
    "fixed": ("foldable", 16, {"quantizer": "fixed_point", "widths": [6]}),
    "flipped": ("foldable", 16, {"quantizer": "lsq", "widths": [8]}),
    "folded": ("foldable", 16, {"quantizer": "lsq", "widths": [4], "fold_batch_norm": "corrected"}),
    "dynamic": ("resnet8_cifar", 16, {"quantizer": "lsq", "widths": [3, 4, 5],
                                      "shared_until": "layer1"}),
}  # fmt: skip


def codes_in_onnxruntime(path, x, grids):
    """Every code that the file's main graph computes, channels first, and the logits."""
    model = onnx.load_from_string(unsigned_weights(path.read_bytes()))
    names = [name for node in model.graph.node for name in node.output]
    uint8 = onnx.TensorProto.UINT8
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, uint8, None) for name in names if name in grids
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    found = session.run(None, {"images": x})
    outputs = zip((own.name for own in session.get_outputs()), found, strict=True)
    return {k: np.moveaxis(v, -1, 1) if v.ndim == 4 else v for k, v in outputs}


@pytest.mark.parametrize("name", HOWS)
def test_every_code_is_the_interpreters(name, tmp_path):
    network, size, how = HOWS[name]
    model = converted(network, size, **how, **SMALL)
    if name == "flipped":
        with torch.no_grad():
            model.backbone.conv2.weight[:, 0, 0, 0] = -1e3
            model.backbone.bn2.weight.copy_(torch.linspace(-1, 1, 8))
    path = tmp_path / "model.onnx"
    graph = dqnet.export_onnx(model, path, "integer")
    x = images(1 if graph.routing else 6, size)
    expected, found = (
        interpret(graph, x.numpy()),
        codes_in_onnxruntime(path, x.numpy(), graph.grids),
    )
    codes = graph.grids.keys() & found.keys()
    assert len(codes) >= 4
    assert [value for value in codes if not np.array_equal(found[value], expected[value])] == []
    assert np.array_equal(found["logits"], expected["logits"])
    loaded = dqnet.load_exported(path)(x)
    assert np.array_equal(loaded.logits.numpy(), expected["logits"])


@pytest.mark.parametrize("name", HOWS)
@torch.no_grad()
def test_with_rounded_biases_simulation_computes_the_same_codes(name):
    network, size, how = HOWS[name]
    model, x = converted(network, size, **how, **SMALL), images(8, size)
    before = model(x).logits
    assert dqnet.round_biases(model) == []
    assert not torch.equal(model(x).logits, before)
    graph = lower(model)
    simulated, whole = interpret(graph, x.numpy()), interpret(to_integer(graph), x.numpy())
    values = [v for v in simulated if v in graph.grids and v in whole]
    assert len(values) >= 4
    steps = {v: np.abs(simulated[v].astype(int) - whole[v]).reshape(len(x), -1) for v in values}
    # A sum of floats may fall on the other side of a tie, and what follows it differs as well.
    first = next((step for step in steps.values() if step.any()), np.zeros(1))
    assert first.max() <= 1
    assert first.mean() < 1e-4
    alike = np.all([~step.any(1) for step in steps.values()], 0)
    assert alike.any()
    found = model(x).logits.numpy()
    np.testing.assert_allclose(found[alike], whole["logits"][alike], rtol=1e-4, atol=1e-5)
    again = {name: value.clone() for name, value in model.state_dict().items()}
    dqnet.round_biases(model)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, again[key], rtol=1e-6, atol=1e-7)


def test_biases_of_several_precisions_without_shifts_of_their_own_stay():
    how = {"quantizer": "lsq", "widths": [3, 4, 5], "width_affine": False, "shared_until": "layer1"}
    model = converted("resnet8_cifar", 16, **how, **SMALL)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kept = dqnet.round_biases(model)
    assert kept == [layer.name for layer in model.routed_layers]
    moved = {
        key for key, value in model.state_dict().items() if not torch.equal(value, before[key])
    }
    assert moved
    assert not any(key.startswith(("backbone.layer2", "backbone.layer3")) for key in moved)


@pytest.mark.parametrize("name", ["resnet", "varied", "dynamic"])
@torch.no_grad()
def test_it_answers_as_the_simulated_network(name):
    """Codes of a random network differ near ties, and those differences spread: most agree."""
    network, size, how = HOWS[name]
    model, x = converted(network, size, **how, **SMALL), images(8, size)
    graph = lower(model)
    simulated = model(x).logits.numpy()
    whole, codes = (interpret(own, x.numpy())["logits"] for own in (graph, to_integer(graph)))
    spread = simulated.std()
    assert np.abs(whole - simulated).max() < 1e-3 * spread or name != "varied"
    assert np.abs(codes - simulated).mean() < 0.1 * spread


def test_every_value_has_a_grid():
    graph = to_integer(lower(converted("resnet20_cifar", 32, **HOWS["resnet"][2], **SMALL)))
    floats = {node.output for node in graph.nodes} - graph.grids.keys()
    assert floats == {"linear", "logits"}


@pytest.mark.parametrize(
    ("network", "how", "message"),
    [
        ("resnet8_cifar", {"quantizer": "lsq", "widths": [4], "first_last": 8},
         "is float32: convert with residual=8"),
        ("resnet8_cifar", {"quantizer": "lsq", "widths": [4], "residual": 8},
         "layer 'conv1' is in full precision, which form=integer has not: convert with first_last"),
        ("resnet8_cifar", {"quantizer": "affine", "widths": [8], **SMALL},
         "weights whose range is not symmetric"),
        ("varied", {"quantizer": "lsq", "widths": [4], **SMALL}, "norm 'bn4' follows no layer"),
    ],
    ids=["residual", "first", "asymmetric", "norm"],
)  # fmt: skip
def test_what_has_no_integer_form_is_named(network, how, message):
    with pytest.raises(UserError, match=message):
        to_integer(lower(converted(network, 16, **how)))


def test_openvino_does_not_run_it(tmp_path):
    path = tmp_path / "model.onnx"
    dqnet.export_onnx(converted("foldable", **HOWS["varied"][2], **SMALL), path, "integer")
    with pytest.raises(UserError, match="is of form integer, whose operators are ONNX Runtime's"):
        dqnet.load_exported(path, "openvino")
    assert dqnet.load_exported(path).runtime == "onnxruntime"


@pytest.mark.parametrize("name", ["varied", "resnet"])
@pytest.mark.parametrize("runtime", ["auto", "openvino"])
@torch.no_grad()
def test_the_exact_form_keeps_the_codes_between_layers(name, runtime, tmp_path):
    network, size, how = HOWS[name]
    model, path = converted(network, size, **how, **SMALL), tmp_path / "model.onnx"
    dqnet.export_onnx(model, path)
    net, x = dqnet.load_exported(path, runtime), images(8, size)
    assert net.runtime == ("onnxruntime" if runtime == "auto" else runtime)
    assert torch.allclose(net(x).logits, model(x).logits, rtol=1e-5, atol=1e-4)
