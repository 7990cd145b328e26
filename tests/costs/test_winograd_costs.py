"""What Winograd convolutions cost, against counts written out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dqnet
from dqnet.costs.bit_flops import BitFlops
from dqnet.costs.energy import Energy
from dqnet.costs.network import default_target_bits
from dqnet.costs.size import Size
from dqnet.formats import Precision
from dqnet.layers import Winograd
from dqnet.plan import LayerPlan

LAYER = LayerPlan(
    "conv", "static", (Precision.parse("w4a8"),), macs=9000, weights=900, inputs=300, outputs=400,
    winograd=Winograd(4, bits=10), multiplications=2500, additions=700,
)  # fmt: skip
W4A8 = Precision.parse("w4a8")


def test_bit_flops_are_of_the_products_at_their_own_bits():
    assert BitFlops().layer(LAYER, W4A8) == 2500 * 10 * 10
    assert BitFlops(hardware_bits=8).layer(LAYER, W4A8) == 2500 * 4 * 8 * 8
    assert BitFlops().layer(LAYER, None) == 9000 * 32 * 32


def test_energy_counts_products_transformed_weights_and_additions():
    constants = {"mac": 3.0, "exponent": 2.0, "local": 0.5, "add": 0.25, "on_chip": 7.0}
    energy = Energy(**constants, off_chip=11.0, weight_buffer=0, activation_buffer=0)
    products = 2500 * (3 * (10 / 16) ** 2 + 0.5 * 20 / 16)
    weights = 900 * 36 / 9 * 10  # bits
    values = 300 * 8 + 400 * 8
    expected = products + 700 * 0.25 * 10 / 16 + (7 + 11) * (weights + values) / 16
    assert energy.layer(LAYER, W4A8) == pytest.approx(expected)


def test_only_zeros_of_inputs_that_are_read_are_skipped():
    rows = [["conv", "weight", "4", 0.5], ["conv", "input", "8", 0.25]]
    constants = {"mac": 0.0, "local": 0.0, "add": 0.0, "on_chip": 16.0, "off_chip": 0.0}
    energy = Energy(**constants, sparsity=rows)
    assert energy.layer(LAYER, W4A8) == 3600 * 10 + 0.75 * 300 * 8 + 400 * 8
    energy = Energy(mac=1.0, exponent=0.0, local=0.0, add=0.0, on_chip=0, off_chip=0, sparsity=rows)
    assert energy.layer(LAYER, W4A8) == 2500


def test_what_is_stored_is_what_the_direct_layer_stores():
    """The 3 x 3 weights; they are transformed when the network is loaded."""
    assert Size().layer(LAYER, W4A8) == 900 * 4 / 8


@pytest.mark.parametrize(("tile", "ratio"), [(2, 2.25), (4, 4.0)])
def test_a_network_costs_as_much_as_a_direct_one_of_fewer_bits(tile, ratio):
    """No tile reaches beyond the 8 x 8 outputs: F(4x4, 3x3) multiplies a quarter as often."""
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip
    image = torch.zeros(1, 3, 8, 8)
    model = dqnet.quantize(net, image, (8,), "affine", winograd=Winograd(tile))
    cost = dqnet.bit_flops(model, torch.zeros(1, 0, 1)).item()
    direct = 6 * 6 * 9 * 64 * 8 * 8
    assert cost == direct / ratio
    assert dqnet.static_bit_flops(model, 8) == direct
    assert default_target_bits(model) == pytest.approx(8 / ratio**0.5)
    (layer,) = (layer for layer in model.layers if layer.winograd)
    per_tile = {2: 32 * 6 + 24 * 6, 4: 144 * 6 + 100 * 6}
    assert layer.additions == (8 // tile) ** 2 * per_tile[tile]
