"""The energy model against the formula, written out for one layer."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import nn

import dqnet
from dqnet.costs.energy import Energy
from dqnet.costs.rows import read_rows, write_rows
from dqnet.costs.sparsity import measure_sparsity
from dqnet.formats import Precision
from dqnet.plan import LayerPlan

CONF = Path(__file__).resolve().parents[2] / "conf" / "cost"
LAYER = LayerPlan("conv", "static", macs=1000, weights=200, inputs=300, outputs=400)
#: nothing but multiply-accumulates
MACS_ONLY = {"local": 0, "on_chip": 0, "off_chip": 0}


def at(energy, precision, layer=LAYER):
    return energy.layer(layer, None if precision is None else Precision.parse(precision))


@pytest.mark.parametrize("exponent", [1.25, 2.0])
@pytest.mark.parametrize(
    ("precision", "width"), [(16, 16), (4, 4), ("w4a9", 6), ("w1a16", 4), (None, 32)]
)
def test_a_multiply_accumulate_falls_with_its_width_as_a_power(exponent, precision, width):
    energy = Energy(mac=3.0, exponent=exponent, **MACS_ONLY)
    assert at(energy, precision) == pytest.approx(1000 * 3.0 * (width / 16) ** exponent)


def test_the_preset_of_45_nm_has_the_sums_of_its_source():
    """Horowitz 2014 in pJ: 8- and 32-bit products, a 32-bit sum; 64 bits of 32 kB and of DRAM."""
    preset = OmegaConf.load(CONF / "energy_45nm.yaml").cost_options
    energy = Energy(**OmegaConf.to_container(preset))
    macs = Energy(mac=energy.mac, exponent=energy.exponent, **MACS_ONLY)
    assert at(macs, 8) == pytest.approx(1000 * (0.2 + 0.1), rel=1e-3)
    assert at(macs, None) == pytest.approx(1000 * (3.1 + 0.1), rel=1e-3)
    assert (4 * energy.on_chip, 4 * energy.off_chip) == (20, 1300)


def test_accesses_cost_in_proportion_to_the_bits():
    energy = Energy(mac=0, local=0.5, on_chip=7, off_chip=0)
    words = (200 * 4 + (300 + 400) * 8) / 16
    assert at(energy, "w4a8") == pytest.approx(1000 * 0.5 * (4 + 8) / 16 + 7 * words)


@pytest.mark.parametrize(
    ("weight_buffer", "activation_buffer", "bits"),
    [
        (100, 400, 0),  # 200 weights of 4 bits are 100 bytes, 400 outputs of 8 bits 400
        (99, 400, 8),
        (100, 300, 100 * 8),
        (0, 0, 200 * 4 + (300 + 400) * 8),
    ],
)
def test_what_does_not_fit_goes_off_the_chip(weight_buffer, activation_buffer, bits):
    buffers = {"weight_buffer": weight_buffer, "activation_buffer": activation_buffer}
    energy = Energy(mac=0, local=0, on_chip=0, off_chip=2, **buffers)
    assert at(energy, "w4a8") == pytest.approx(2 * bits / 16)


def test_guards_skip_zeros():
    rows = [("conv", "weight", "4", 0.25), ("conv", "input", "8", 0.5)]
    energy = Energy(mac=1, local=1, on_chip=1, off_chip=1, weight_buffer=0, sparsity=rows)
    multiplied = 1000 * 0.75 * 0.5 * (math.sqrt(32 / 256) ** 1.25 + 12 / 16)
    near = 200 * 4 * 0.75 + 300 * 8 * 0.5 + 400 * 8
    assert at(energy, "w4a8") == pytest.approx(multiplied + (near + 200 * 4) / 16)
    other = LayerPlan("unmeasured", "full", macs=10)
    assert at(energy, None, other) == at(Energy(), None, other)
    with pytest.raises(dqnet.UserError, match="'conv' was not measured with its input at 4"):
        at(energy, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mac": -1}, "mac -1 of the cost must be a number from 0"),
        ({"exponent": "high"}, "exponent 'high' of the cost"),
        ({"sparsity": [("a", "weight", "4", -0.1)]}, "zeros of a, weight, 4 is -0.1"),
        ({"sparsity": [("a", "bias", "4", 0.1)]}, "sparsity of a: bias"),
        ({"sparsity": [("a", "input", "4", 1.1)]}, "sparsity of a: input 1.1"),
        ({"sparsity": [("a", "input", "4", 0.1)] * 2}, "two rows for a, input, 4"),
    ],
)
def test_what_is_wrong_is_named(options, message):
    with pytest.raises(dqnet.UserError, match=message):
        Energy(**options)


def two_layers():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Conv2d(5, 3, 3)
    ).append(nn.Flatten())
    model = dqnet.quantize(
        net, torch.zeros(1, 2, 9, 9), (2, 4), "affine", None,
        controller=dqnet.ControllerConfig(kind="separate"), first_last=8,
    )  # fmt: skip
    images = torch.randn(6, 2, 9, 9)
    dqnet.calibrate(model, [images])
    return model, images


def test_sparsity_is_the_share_of_zeros_of_each_tensor_and_format():
    model, images = two_layers()
    rows = {row[:3]: row[3] for row in measure_sparsity(model, images.split(4))}
    middle = model.backbone[2]
    assert {key for key in rows if key[0] == "2"} == {
        ("2", tensor, bits) for tensor in ("weight", "input") for bits in ("2", "4")
    }
    x = F.relu(F.conv2d(images, model.backbone[0].weight, model.backbone[0].bias))
    for k, bits in enumerate(("2", "4")):
        values = middle.input_quantizer(x, k)
        assert rows["2", "input", bits] == pytest.approx((values == 0).double().mean().item())
        values = middle.weight_quantizer(middle.weight, k)
        assert rows["2", "weight", bits] == pytest.approx((values == 0).double().mean().item())
    # Behind a ReLU about half of all inputs are zero, and with fewer bits more of them.
    assert 0.3 < rows["2", "input", "4"] <= rows["2", "input", "2"]


def test_measured_sparsity_lowers_the_energy_of_a_network(tmp_path):
    model, images = two_layers()
    rows = measure_sparsity(model, [images])
    write_rows(tmp_path / "sparsity.csv", ("layer", "tensor", "format", "zeros"), rows)
    assert read_rows(tmp_path / "sparsity.csv") == rows
    # The pinned layers have no format in common with the one between them.
    assert Energy(sparsity=rows).precisions == ()
    routing = torch.tensor([[[1.0, 0.0]]])
    dense, sparse = (dqnet.cost(model, routing, by=Energy(sparsity=own)) for own in ((), rows))
    assert sparse.item() < dense.item()


def test_sparsity_needs_ranges_and_images():
    model, _ = two_layers()
    with pytest.raises(dqnet.UserError, match="give at least one batch"):
        measure_sparsity(model, [])
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    model = dqnet.quantize(net, torch.zeros(1, 2, 9, 9), (4,), "affine")
    with pytest.raises(dqnet.UserError, match=r"run dqnet\.calibrate first"):
        measure_sparsity(model, [torch.randn(1, 2, 9, 9)])
