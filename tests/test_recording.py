"""Recordings of a network: of one width right for any batch, of several refused."""

import copy

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torchvision.models.feature_extraction import create_feature_extractor

import dqnet
from dqnet import UserError
from dqnet.layers import QuantConv2d, QuantLinear


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = (nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8, 8))
        self.hidden, self.fc = nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.b(self.a(self.stem(x).relu()).relu()).relu()
        return self.fc(self.hidden(x.mean((2, 3))).relu())


def images(n=4, seed=0):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def converted(widths, quantizer="dorefa"):
    torch.manual_seed(0)
    model = dqnet.quantize(Net(), images(1), widths, quantizer, shared_until="a").eval()
    with torch.no_grad():
        model(images(16))
    return model


def exported(model, strict=False):
    batch = torch.export.Dim("batch", min=1, max=64)
    return torch.export.export(
        model, (images(),), dynamic_shapes=({0: batch},), strict=strict
    ).module()


RECORDERS = {
    "torch.jit.trace": lambda model: torch.jit.trace(model, (images(),)),
    "torch.export": exported,
    "make_fx": lambda model: make_fx(lambda x: tuple(model(x)))(images()),
}


@pytest.mark.parametrize("quantizer", ["dorefa", "pact", "lsq"])
@pytest.mark.parametrize("recorder", RECORDERS)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_recording_of_one_width_is_right_for_other_batches(recorder, quantizer):
    model = converted((4,), quantizer)
    with torch.no_grad():
        recorded = RECORDERS[recorder](model)
        for n in (1, 4, 9):
            x = 2 * images(n, seed=n)
            expected = model(x)
            logits, routing = recorded(x)
            torch.testing.assert_close(logits, expected.logits)
            if recorder != "make_fx":  # which keeps shapes, unless they are symbolic
                assert routing.shape == expected.routing.shape == (n, 0, 1)


def test_a_strict_export_of_one_width_is_right_for_other_batches():
    model = converted((4,))
    torch.testing.assert_close(exported(model, strict=True)(images(9))[0], model(images(9)).logits)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_recording_has_the_networks_gradients():
    model = converted((4,), "lsq")
    recorded = torch.jit.trace(model, (images(),))
    gradients = []
    for net in (model, recorded):
        net(images(9))[0].square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
        model.zero_grad()
    assert gradients[0][0].any()
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(theirs, ours)


@pytest.mark.parametrize("recorder", RECORDERS)
def test_a_recording_of_several_widths_is_refused(recorder):
    model = converted((2, 3, 4))
    expected = model(images())
    with pytest.raises(UserError, match=rf"^{recorder} would record the widths of this") as error:
        RECORDERS[recorder](model)
    assert "\n" not in str(error.value)
    assert torch.equal(model(images()).logits, expected.logits)  # nothing stays behind


def test_a_recording_of_a_layer_with_several_widths_is_refused():
    layer = QuantConv2d(3, 4, 3, widths=(2, 3))
    with pytest.raises(UserError, match="would record the widths"):
        torch.jit.trace(layer, (images(2), torch.eye(2)))


@pytest.mark.parametrize("recorder", RECORDERS)
def test_a_recording_before_the_first_batch_is_refused(recorder):
    model = dqnet.quantize(Net(), images(1), (4,), "lsq").eval()
    with pytest.raises(UserError, match=r"run a batch, or dqnet\.calibrate, first"):
        RECORDERS[recorder](model)
    assert not any(q.ready for q in model.modules() if hasattr(q, "initialized"))


def test_a_network_that_has_just_been_loaded_may_be_exported():
    model = converted((4,), "lsq")
    other = dqnet.quantize(Net(), images(1), (4,), "lsq").eval()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(exported(other)(images(3))[0], model(images(3)).logits)


@pytest.mark.parametrize("widths", [(4,), (2, 3, 4)])
@pytest.mark.parametrize("part", ["network", "backbone"])
def test_symbolic_tracing_and_scripting_are_refused(widths, part):
    model = converted(widths)
    part = model if part == "network" else model.backbone
    for trace, message in (
        (torch.fx.symbolic_trace, "torch.fx cannot trace quantized layers"),
        (lambda m: create_feature_extractor(m, ["fc"]), "read features with forward hooks"),
        (torch.jit.script, "torch.jit.script cannot compile quantized layers"),
    ):
        with pytest.raises(UserError, match=message) as error:
            trace(part)
        assert "\n" not in str(error.value)


def test_features_may_be_read_with_quantized_layers_as_leaves():
    model = converted((4,))
    leaves = {"leaf_modules": [QuantConv2d, QuantLinear]}
    extractor = create_feature_extractor(model.backbone, ["hidden"], tracer_kwargs=leaves)
    read = []
    model.backbone.hidden.register_forward_hook(lambda m, args, output: read.append(output))
    model(images(3))
    assert torch.equal(extractor(images(3))["hidden"], read[0])


@pytest.mark.parametrize("widths", [(4,), (2, 3, 4)])
def test_a_compiled_network_is_not_refused(widths):
    model = converted(widths)
    compiled = torch.compile(copy.deepcopy(model), backend="eager")
    with torch.no_grad():
        for n in (4, 9):
            for ours, theirs in zip(model(images(n)), compiled(images(n)), strict=True):
                torch.testing.assert_close(theirs, ours)
