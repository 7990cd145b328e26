"""A cascade as one file: answers, passes and costs against the module's."""

import onnx
import pytest
import torch
from networks import converted, images

import dqnet
from dqnet.errors import UserError


@pytest.fixture(scope="module")
def networks():
    form = {"quantizer": "lsq", "first_last": 8}
    return {
        "four": converted(widths=[4], **form),
        "three": converted(widths=[3], **form),
        "routed": converted(widths=[2, 3, 4], shared_until="pool", **form),
    }


def cascade_of(first, second=None, **how):
    """One that half of the images run through twice, with numbers as if they were fitted."""
    cascade = dqnet.Cascade(first, second, **how).eval()
    cascade.temperatures.copy_(torch.tensor([2.0, 0.7]))
    cascade.weight.fill_(0.4)
    cascade.threshold.fill_(1)
    with torch.no_grad():
        z = first(images(16)).logits
    cascade.threshold.copy_(cascade.tempered(z, 0).exp().amax(1).sort().values[7:9].mean())
    return cascade


KINDS = {
    "look": lambda own: cascade_of(own["three"], view="mirror"),
    "replaced": lambda own: cascade_of(own["four"], own["three"], combine="replace"),
    "routed": lambda own: cascade_of(own["routed"], view="mirror"),
    "of a cascade": lambda own: cascade_of(
        cascade_of(own["four"], view="mirror"), own["routed"], view="mirror"
    ),
    "then a cascade": lambda own: cascade_of(
        own["four"], cascade_of(own["four"], own["three"]), view="mirror"
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_answers_as_the_module(kind, networks, tmp_path):
    cascade = KINDS[kind](networks)
    assert dqnet.export_onnx(cascade, tmp_path / "model.onnx") is None
    net = dqnet.load_exported(tmp_path / "model.onnx", runtime="onnxruntime", threads=2)
    x = images(16)
    with torch.no_grad():
        expected = cascade(x)
    found = net(x)
    assert len(set(expected.bit_flops.tolist())) > 1  # not all images go one way
    assert torch.equal(found.passes, expected.passes)
    assert torch.equal(found.bit_flops, expected.bit_flops)
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-4)
    with pytest.raises(UserError, match="the network is a cascade"):
        net(x, budget_lambda=1.0)


def test_in_openvino(networks, tmp_path):
    pytest.importorskip("openvino")
    cascade = KINDS["of a cascade"](networks)
    dqnet.export_onnx(cascade, tmp_path / "model.onnx")
    with torch.no_grad():
        expected = cascade(images(8))
    found = dqnet.load_exported(tmp_path / "model.onnx", runtime="openvino")(images(8))
    assert torch.equal(found.passes, expected.passes)
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-4)


def test_one_set_of_weights_is_stored_once(networks, tmp_path):
    look = cascade_of(networks["three"], view="mirror")
    dqnet.export_onnx(look, tmp_path / "look.onnx")
    dqnet.export_onnx(networks["three"], tmp_path / "one.onnx")
    sizes = []
    for name in ("look", "one"):
        constants = onnx.load(tmp_path / f"{name}.onnx").graph.initializer
        sizes.append(sum(onnx.numpy_helper.to_array(own).nbytes for own in constants))
    assert 0 < sizes[0] - sizes[1] < 200  # the cascade's own numbers


def test_all_integer(tmp_path):
    first = converted("foldable", widths=[4], quantizer="lsq", first_last=8, residual=8)
    cascade = cascade_of(first, view="mirror")
    dqnet.export_onnx(cascade, tmp_path / "model.onnx", form="integer")
    net = dqnet.load_exported(tmp_path / "model.onnx")
    alone = dqnet.export_onnx(first, tmp_path / "one.onnx", form="integer")
    assert alone is not None and net.metadata["form"] == "integer"
    single = dqnet.load_exported(tmp_path / "one.onnx")
    x = images(16)
    found, one, two = net(x), single(x).logits, single(x.flip(-1)).logits
    log_p = cascade.tempered(one, 0)
    unsure = log_p.exp().amax(1) <= cascade.threshold
    answer = cascade.combined(log_p, cascade.tempered(two, 1))
    assert found.passes.tolist() == (1 + unsure.int()).tolist() and 0 < unsure.sum() < 16
    expected = torch.where(unsure[:, None], answer, log_p)
    torch.testing.assert_close(found.logits, expected, rtol=1e-5, atol=1e-5)


def test_what_is_refused(networks, tmp_path):
    look = cascade_of(networks["three"], view="mirror")
    with pytest.raises(UserError, match="a cascade has no form=qonnx"):
        dqnet.export_onnx(look, tmp_path / "model.onnx", form="qonnx")
    with pytest.raises(UserError, match="export with form=exact"):
        dqnet.export_onnx(look, tmp_path / "model.onnx", form="integer")
    assert not (tmp_path / "model.onnx").exists()
