"""The integer graph computes what the simulated network does."""

import numpy as np
import pytest
import torch
from networks import STATIC, converted, images

from dqnet.errors import UserError
from dqnet.export import nodes as n
from dqnet.export.interpret import interpret
from dqnet.export.lower import lower


def run(model, x, **more):
    graph = lower(model)
    return graph, interpret(graph, x.numpy(), **more)


def assert_close(ours, theirs):
    """To float32's rounding; and of no more than a code in a thousand a tie fell otherwise."""
    theirs = theirs.detach().numpy()
    scale = np.abs(theirs).max()
    assert (np.abs(ours - theirs) < 1e-5 * scale).mean() > 0.95
    assert np.abs(ours - theirs).max() < 0.1 * scale


@pytest.mark.parametrize("how", STATIC)
@torch.no_grad()
def test_static_networks(how):
    model, x = converted(**STATIC[how]), images(8)
    _, values = run(model, x)
    assert_close(values["logits"], model(x).logits)


@pytest.mark.parametrize("how", ["lsq8", "affine8", "pact"])
@torch.no_grad()
def test_the_codes_of_a_layer_are_its_quantizers(how):
    """Given the same input: at most one code apart, and near ties alone."""
    model, x = converted(**STATIC[how]), images(8)
    graph, values = run(model, x)
    checked = 0
    for name, layer in model.backbone.named_children():
        codes = values.get(f"{name}.input")
        if codes is None:
            continue
        (node,) = [node for node in graph.nodes if node.output == f"{name}.input"]
        given = torch.from_numpy(values[node.inputs[0]])
        own = layer.input_quantizer.encode(given, 0)
        offset = graph.grids[node.output].zero_point - own.zero_point.item()
        assert np.array_equal(codes, (own.codes + offset).numpy())
        checked += 1
    assert checked >= 2


@pytest.mark.parametrize("widths", [[2, 3, 4], ["w2a4", "w4a4", "w4a8"]])
@torch.no_grad()
def test_dynamic_networks_route_and_answer_alike(widths):
    how = {"quantizer": "lsq", "widths": widths, "shared_until": "layer1"}
    model, x = converted("resnet8_cifar", **how), images(8)
    _, values = run(model, x)
    logits, routing = model(x)
    assert len(routing.flatten(1).unique(dim=0)) > 1
    assert np.array_equal(values["routing"], routing.numpy())
    assert_close(values["logits"], logits)

    other = routing.roll(1, 0).flip(2)
    _, values = run(model, x, routing=other.numpy())
    assert_close(values["logits"], model(x, routing=other).logits)


def test_a_norm_of_negative_scale_flips_the_lowest_code():
    """−(−128) is 128, which int8 does not hold: the graph does."""
    model = converted(quantizer="lsq", widths=[8], first_last=8)
    layer = model.backbone.conv2
    with torch.no_grad():
        layer.weight[:, 0, 0, 0] = -1e3
        model.backbone.bn2.weight.fill_(-0.5)
    x = images(8)
    graph, values = run(model, x)
    (conv,) = [node.operation for node in graph.nodes if node.output == "conv2"]
    assert conv.weight.codes.max() == 128 and (conv.weight.scale >= 0).all()
    with torch.no_grad():
        assert_close(values["logits"], model(x).logits)


def test_what_is_not_quantized_is_not_in_the_graph():
    graph = lower(converted(quantizer="lsq", widths=[3]))
    assert set(graph.grids) == {"conv2.input", "conv3.input", "conv4.input"}
    norms = [node.output for node in graph.nodes if isinstance(node.operation, n.Affine)]
    assert norms == ["bn4"]  # the others are part of layers


class Squares(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.fc = torch.nn.Linear(4, 5)

    def forward(self, x):
        return self.fc((self.conv(x) * self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"quantizer": "dorefa", "widths": [8]}, "codes of DoReFaWeight at 8 bits are the odd "
         "numbers from -"),
        ({"quantizer": "dorefa", "widths": [4], "first_last": 4}, "input of layer 'conv1' is "
         "on a grid of DoReFaInput whose zero is between two codes"),
        ({"quantizer": "lsq", "widths": [9]}, "the weight of layer 'conv2' has 9 bits"),
        ({"quantizer": "lsq", "widths": ["w8a9"]}, "the input of layer 'conv2' has 9 bits"),
        ({"quantizer": "minifloat", "widths": ["e4m3"]}, r"has a table of values \(Minifloat"),
        ({"quantizer": ("nf4", "affine"), "widths": ["w4a8"]}, "the weight of layer 'conv2' has a"),
        ({"quantizer": "lsq_plus", "widths": [4]}, "whose zero is between two codes"),
    ],
    ids=str,
)  # fmt: skip
def test_grids_that_integer_hardware_has_not_are_refused(how, message):
    with pytest.raises(UserError, match=message) as raised:
        lower(converted(**how))
    assert "\n" not in str(raised.value)


def test_operations_without_an_integer_form_are_named():
    model = converted("regnety_002", size=32, quantizer="lsq", widths=[4])
    with pytest.raises(UserError, match=r"sigmoid in s1\.b1\.se\.gate has no integer form"):
        lower(model)


def test_a_float_network_is_refused():
    with pytest.raises(UserError, match="in full precision: convert it first"):
        lower(Squares())
