"""Bit-FLOPs against counts written out by hand."""

import itertools

import pytest
import timm
import torch
from torch import nn

import dqnet
from dqnet.costs import cost_table
from dqnet.costs.bit_flops import BitFlops
from dqnet.costs.controller import controller_cost
from dqnet.costs.network import check_target, reachable_bits
from dqnet.costs.static import following_macs
from dqnet.costs.width import mean_width
from dqnet.formats import Precision
from dqnet.plan import LayerPlan

# name: (channels in, channels out, kernel, output height = width), in execution order
RESNET20 = {
    "conv1": (3, 16, 3, 32),
    "layer1.0.conv1": (16, 16, 3, 32),
    "layer1.0.conv2": (16, 16, 3, 32),
    "layer1.1.conv1": (16, 16, 3, 32),
    "layer1.1.conv2": (16, 16, 3, 32),
    "layer1.2.conv1": (16, 16, 3, 32),
    "layer1.2.conv2": (16, 16, 3, 32),
    "layer2.0.conv1": (16, 32, 3, 16),
    "layer2.0.conv2": (32, 32, 3, 16),
    "layer2.1.conv1": (32, 32, 3, 16),
    "layer2.1.conv2": (32, 32, 3, 16),
    "layer2.2.conv1": (32, 32, 3, 16),
    "layer2.2.conv2": (32, 32, 3, 16),
    "layer3.0.conv1": (32, 64, 3, 8),
    "layer3.0.conv2": (64, 64, 3, 8),
    "layer3.1.conv1": (64, 64, 3, 8),
    "layer3.1.conv2": (64, 64, 3, 8),
    "layer3.2.conv1": (64, 64, 3, 8),
    "layer3.2.conv2": (64, 64, 3, 8),
    "linear": (64, 10, 1, 1),
}
MACS = {k: i * o * kernel**2 * size**2 for k, (i, o, kernel, size) in RESNET20.items()}
SHARED = [k for k in RESNET20 if k.startswith("layer1")]
ROUTED = [k for k in RESNET20 if k.startswith(("layer2", "layer3"))]
FULL = ["conv1", "linear"]


def resnet20(widths=(2, 3, 4), **kwargs):
    return dqnet.quantize(
        timm.create_model("resnet20_cifar"), torch.zeros(1, 3, 32, 32), widths, **kwargs
    )


class Three(nn.Module):
    """A first convolution, a shared one, two routed ones and a classifier."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.a = nn.Conv2d(4, 6, 3, padding=1, stride=2)
        self.b = nn.Conv2d(6, 8, 1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.b(self.a(self.shared(self.stem(x)))).mean((2, 3)))


MACS_OF_THREE = {"shared": 4 * 4 * 9 * 64, "a": 4 * 6 * 9 * 16, "b": 6 * 8 * 16}


def three(widths, **kwargs):
    return dqnet.quantize(Three(), torch.zeros(1, 3, 8, 8), widths, shared_until="shared", **kwargs)


def every_routing(layers, widths):
    choices = torch.eye(widths)
    return torch.stack(
        [choices[list(index)] for index in itertools.product(range(widths), repeat=layers)]
    )


def at(columns, widths=3):
    """One image's routing ``[1, L, K]`` from the width's index in every layer."""
    return torch.eye(widths)[list(columns)].unsqueeze(0)


def test_layer_macs_equal_the_hand_count():
    assert {layer.name: layer.macs for layer in resnet20().layers} == MACS


def test_quantized_macs_of_resnet20():
    """Each stage's convolutions cost the same, but the two with stride 2 half as much."""
    assert following_macs(resnet20().layers) == 17 * (16 * 16 * 9 * 32 * 32)


@pytest.mark.parametrize("bits", [3, 2.5])
def test_static_bit_flops_counts_shared_and_routed_layers(bits):
    expected = bits**2 * sum(MACS[k] for k in SHARED + ROUTED)
    assert dqnet.static_bit_flops(resnet20(), bits) == expected


def test_static_bit_flops_is_a_float():
    assert isinstance(dqnet.static_bit_flops(resnet20((3,)), 3), float)


def test_all_layers_at_three_bits():
    cost = dqnet.bit_flops(resnet20(), at([1] * 12))
    assert cost.tolist() == [9 * sum(MACS[k] for k in SHARED + ROUTED)]


def test_a_routing_of_mixed_widths():
    columns = [0, 1, 2, 2, 1, 0, 0, 0, 2, 1, 1, 2]
    widths = (2, 3, 4)
    expected = 9 * sum(MACS[k] for k in SHARED) + sum(
        widths[c] ** 2 * MACS[k] for c, k in zip(columns, ROUTED, strict=True)
    )
    assert dqnet.bit_flops(resnet20(), at(columns)).tolist() == [expected]


def test_every_image_has_its_own_cost():
    model = resnet20()
    routing = torch.cat([at([0] * 12), at([2] * 12), at([1] * 12)])
    apart = [dqnet.bit_flops(model, one.unsqueeze(0)).item() for one in routing]
    assert dqnet.bit_flops(model, routing).tolist() == apart
    assert apart[0] < apart[2] < apart[1]


def test_a_probability_costs_its_expectation():
    model = three((2, 4))
    routing = torch.tensor([[[0.25, 0.75], [0.5, 0.5]]])
    expected = 16 * MACS_OF_THREE["shared"]  # the upper of the two middle widths
    expected += (0.25 * 4 + 0.75 * 16) * MACS_OF_THREE["a"] + 10 * MACS_OF_THREE["b"]
    assert dqnet.bit_flops(model, routing).item() == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("width", [1, 3, 16])
def test_a_static_network_costs_its_width_squared(width):
    model = resnet20((width,))
    expected = width**2 * sum(MACS[k] for k in SHARED + ROUTED)
    assert dqnet.bit_flops(model, torch.zeros(2, 0, 1)).tolist() == [expected, expected]


def test_layers_in_full_precision_count_at_32_by_32():
    model, routing = resnet20(), at([1] * 12)
    difference = dqnet.bit_flops(model, routing, full_precision=True) - dqnet.bit_flops(
        model, routing
    )
    assert difference.tolist() == [1024 * sum(MACS[k] for k in FULL)]


def test_the_static_width_prices_the_shared_layers():
    cheap, dear = (resnet20(static_width=w) for w in (2, 4))
    difference = dqnet.bit_flops(dear, at([1] * 12)) - dqnet.bit_flops(cheap, at([1] * 12))
    assert difference.tolist() == [(16 - 4) * sum(MACS[k] for k in SHARED)]


def test_the_gradient_is_macs_times_width_squared():
    routing = at([1] * 12).repeat(2, 1, 1).requires_grad_()
    dqnet.bit_flops(resnet20(), routing).sum().backward()
    expected = torch.tensor([[float(w * w * MACS[k]) for w in (2, 3, 4)] for k in ROUTED])
    assert torch.equal(routing.grad, expected.expand(2, -1, -1))


def test_costs_that_float32_cannot_hold_are_exact():
    net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Conv2d(5, 7, 3), nn.Conv2d(7, 12, 3), nn.Flatten())
    net.append(nn.Linear(12 * 27 * 27, 2))
    model = dqnet.quantize(net, torch.zeros(1, 3, 31, 31), (2, 15), shared_until="0")
    expected = 225 * (5 * 7 * 9 * 29**2 + 7 * 12 * 9 * 27**2)
    assert expected > 2**24 and expected % 2 == 1
    assert dqnet.bit_flops(model, at([1, 1], 2)).item() == expected


@pytest.mark.parametrize("widths", [(2, 4), (1, 3, 8)])
def test_reachable_bits_are_the_extremes_of_every_routing(widths):
    model = three(widths)
    costs = dqnet.bit_flops(model, every_routing(2, len(widths)))
    bits = (costs / sum(MACS_OF_THREE.values())).sqrt()
    assert reachable_bits(model) == pytest.approx((bits.min().item(), bits.max().item()))


def test_a_static_network_reaches_its_own_width_only():
    assert reachable_bits(resnet20((3,))) == (3.0, 3.0)


@pytest.mark.parametrize("bits", [1.9, 4.2])
def test_an_unreachable_target_is_refused_with_the_range(bits):
    model = resnet20()
    low, high = reachable_bits(model)
    with pytest.raises(dqnet.UserError, match=f"{low:.3f} to {high:.3f}") as error:
        check_target(model, bits)
    assert f"target_bits={bits}" in str(error.value)


@pytest.mark.parametrize("end", [0, 1])
def test_the_printed_ends_of_the_range_may_be_typed_in(end):
    model = three((2, 3, 4))
    bits = float(f"{reachable_bits(model)[end]:.3f}")
    assert check_target(model, bits) == dqnet.static_bit_flops(model, bits)


def test_mean_width_is_the_plain_mean_over_routed_layers():
    columns = [0, 1, 2, 2, 1, 0, 0, 0, 2, 1, 1, 2]
    routing = torch.cat([at(columns), at([2] * 12)])
    expected = [sum((2, 3, 4)[c] for c in columns) / 12, 4.0]
    assert mean_width(resnet20(), routing).tolist() == pytest.approx(expected)


def test_mean_width_of_a_static_network():
    assert mean_width(resnet20((5,)), torch.zeros(2, 0, 1)).tolist() == [5.0, 5.0]


def test_mean_width_gradient_is_the_width_over_the_number_of_layers():
    routing = at([0] * 12).requires_grad_()
    mean_width(resnet20(), routing).sum().backward()
    expected = torch.tensor([2.0, 3.0, 4.0]).expand(1, 12, 3) / 12
    torch.testing.assert_close(routing.grad, expected)


def test_controller_cost_of_resnet20_equals_a_count_by_hand():
    cost = controller_cost(resnet20())
    outputs = 12 * 3
    # Mean and deviation of 16 maps, a norm's scale and shift, 32 hidden units.
    assert cost.params == 2 * 32 + (32 * 32 + 32) + (32 * outputs + outputs)
    assert cost.macs == 2 * 16 * 32 * 32 + 32 * 32 + 32 * outputs
    assert (cost.backbone_params, cost.backbone_macs) == (269_722, sum(MACS.values()))


def test_controller_cost_of_a_static_network_is_zero():
    cost = controller_cost(resnet20((3,)))
    assert (cost.params, cost.macs, cost.params_ratio, cost.macs_ratio) == (0, 0, 0.0, 0.0)


@pytest.mark.parametrize("quantizer", ["lsq", "pact"])
def test_quantizer_parameters_are_not_the_backbones(quantizer):
    assert controller_cost(resnet20(quantizer=quantizer)).backbone_params == 269_722


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet20_cifar", 32),
        ("resnet56_cifar", 32),
        ("resnet110_cifar", 32),
        ("resnet18", 224),
        ("resnet50", 224),
        ("mobilenetv2_100", 224),
        ("regnetx_002", 224),
    ],
)
def test_the_shared_controller_adds_less_than_one_percent(name, size):
    cost = controller_cost(
        dqnet.quantize(timm.create_model(name), torch.zeros(1, 3, size, size), (2, 3, 4))
    )
    assert 0 < cost.params_ratio < 0.01
    assert 0 < cost.macs_ratio < 0.01


def test_a_cost_that_was_first_asked_for_in_inference_mode_can_be_trained_with():
    model = resnet20(widths=(2, 5, 7))  # widths of no other test: its table is not kept yet
    shape = 2, len(model.routed_layers), 3
    with torch.inference_mode():
        dqnet.bit_flops(model, torch.full(shape, 1 / 3))
    routing = torch.full(shape, 1 / 3, requires_grad=True)
    dqnet.bit_flops(model, routing).sum().backward()
    assert torch.equal(routing.grad[0].double(), cost_table(model).float().double())


@pytest.mark.parametrize(
    ("hardware", "precision", "bit_products"),
    [
        (None, "w2a8", 16),
        (1, "w2a8", 16),
        (2, "w2a8", 16),  # ⌈8/2⌉ passes of 2 × 2
        (4, "w4a8", 32),
        (3, "w3a8", 27),  # ⌈8/3⌉ passes of 3 × 3, one of them for two bits alone
        (4, "w2a8", 32),  # 2-bit weights on 4-bit hardware are no cheaper than 4-bit ones
        (8, "w2a8", 64),
        (2, "3", 16),
    ],
)
def test_hardware_of_few_bits_takes_wider_numbers_digit_by_digit(hardware, precision, bit_products):
    by = BitFlops(hardware)
    layer = LayerPlan("conv1", "static", macs=1000)
    assert by.layer(layer, Precision.parse(precision)) == 1000 * bit_products
    assert by.layer(layer, None) == 1000 * 32 * 32


def test_a_network_is_priced_on_hardware_of_few_bits():
    """The first convolution reads 8-bit pixels and has weights of as many bits as the rest."""
    net = timm.create_model("resnet20_cifar")
    rules = {"conv1": "w3a8", "linear": "full"}
    model = dqnet.quantize(net, torch.zeros(1, 3, 32, 32), (3,), layers=rules)
    nothing = torch.zeros(1, 0, 1)
    rest = sum(MACS.values()) - MACS["conv1"] - MACS["linear"]
    plain = dqnet.cost(model, nothing).item()
    on_hardware = dqnet.cost(model, nothing, by=BitFlops(hardware_bits=3)).item()
    assert plain == 9 * rest + 24 * MACS["conv1"]
    assert on_hardware == 9 * rest + 27 * MACS["conv1"]


def test_hardware_without_bits_is_refused():
    with pytest.raises(dqnet.UserError, match="hardware_bits 0 must be at least 1"):
        BitFlops(hardware_bits=0)
