"""The bytes of a packed network, counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dqnet
from dqnet.costs.size import contents, weight_bytes
from dqnet.quantizers import Quantizer


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, bias=False),
        nn.ReLU(), nn.Conv2d(16, 4, 3), nn.Flatten(), nn.Linear(4 * 9, 5),
    )  # fmt: skip


SAMPLE = torch.zeros(1, 3, 9, 9)
#: parameters and running statistics that stay as they are: two layers, a norm, the biases
FLOATS = 4 * ((8 * 27 + 8) + 4 * 8 + 4 + (36 * 5 + 5))
#: weights of the two quantized layers
FIRST, SECOND = 16 * 8 * 9, 4 * 16 * 9


def converted(quantizer, *widths, **options):
    model = dqnet.quantize(
        network(), SAMPLE, widths=widths, quantizer=(quantizer, "dorefa"),
        options=(options, {}), width_affine=False, shared_until="0",
    )  # fmt: skip
    dqnet.calibrate(model, [torch.rand(4, 3, 9, 9)])
    return model


def rest(model):
    """Flags of the inputs' quantizers, and the controller."""
    quantizers = 4 * sum(
        name.endswith("input_quantizer.signed_form") for name in model.state_dict()
    )
    controller = getattr(model, "controller", None)
    if controller is None:
        return quantizers
    values = [v for v in controller.state_dict().values() if v.is_floating_point()]
    return quantizers + 4 * sum(v.numel() for v in values)


def test_a_float_network_has_four_bytes_for_each_number():
    assert weight_bytes(network()) == FLOATS + 4 * (FIRST + SECOND)


@pytest.mark.parametrize(
    ("quantizer", "width", "options", "more"),
    [
        ("dorefa", 4, {}, 2 * 8),  # a scale and a zero point for each layer
        ("lsq", 4, {}, 2 * 4),
        ("affine", 8, {}, 2 * 4 * (16 + 4)),
        ("symmetric", 8, {}, 4 * (16 + 4)),  # zero points of zero are not stored
        ("symmetric", 3, {"granularity": "per_tensor"}, 2 * 4),
        ("minifloat", "we4m3a4", {}, 4 * (16 + 4)),
        ("minifloat", "we3m2a4", {"granularity": "block", "block": 32}, 4 * (36 + 18)),
        ("nf4", 4, {}, 4 * (18 + 9) + 4 * 16),  # one table for both
        ("power_of_two", 3, {}, 2 * 4 + 4 * 7),
        ("codebook", 4, {}, 2 * 4 + 2 * 4 * 16),  # one table for each
        ("smart_deal", 4, {}, (16 + 4) * (2 + 9) + 4 * 15),  # a basis for each filter
    ],
)  # fmt: skip
def test_codes_are_stored_at_their_bits(quantizer, width, options, more):
    model = converted(quantizer, width, **options)
    bits = model.precisions[0].weight.bits
    codes = -(-FIRST * bits // 8) + -(-SECOND * bits // 8)
    assert weight_bytes(model) == FLOATS + codes + more + rest(model)


def test_a_routed_layer_is_stored_at_all_its_widths():
    model = converted("lsq", 2, 3, 4)
    assert [layer.role for layer in model.layers].count("routed") == 2
    codes = (FIRST + SECOND) * 9 // 8
    assert weight_bytes(model) == FLOATS + codes + 2 * 3 * 4 + rest(model)


def test_eight_bit_weights_are_a_quarter_of_float():
    import timm

    float_model = timm.create_model("resnet20_cifar")
    before = weight_bytes(float_model)
    model = dqnet.quantize(
        float_model, torch.zeros(1, 3, 32, 32), widths=(8,), quantizer="affine", first_last=8
    )
    dqnet.calibrate(model, [torch.rand(4, 3, 32, 32)])
    assert 0.25 < weight_bytes(model) / before < 0.27


def test_the_state_that_codes_replace_is_not_stored():
    model = converted("lsq", 4)
    names = contents(model).tensors.keys()
    assert "backbone.1.running_mean" in names and "backbone.5.bias" in names
    assert not {name for name in names if "weight_quantizer" in name or "batches" in name}
    assert "backbone.3.weight" not in names


def test_a_method_without_codes_has_no_size():
    class Half(Quantizer):
        def forward(self, x, k):
            return x / 2

    model = dqnet.quantize(network(), SAMPLE, widths=(4,), quantizer=Half)
    assert weight_bytes(model) is None
