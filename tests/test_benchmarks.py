"""The yardstick of the speed tables computes what the network computes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
from scipy.special import softmax
from scipy.stats import entropy
from small_runs import image_folder  # noqa: F401  a fixture
from torch import nn

import dqnet
from benchmarks import deploy, formats, layer_latencies
from benchmarks.dynamic import gradient_error, networks
from benchmarks.every_width import WidthNorm, split_norms, uniform
from benchmarks.formats import METHODS, format_of, relative_error
from benchmarks.gatekeeper import gatekeeper
from benchmarks.precision_gating import Gate
from dqnet.config import ControllerConfig
from dqnet.costs.table import Table
from dqnet.layers import QuantConv2d


def test_the_textbook_network_answers_like_the_dynamic_one():
    nets = networks("resnet20_cifar", 16, 3, torch.device("cpu"), ("textbook", "dynamic"))
    images = torch.randn(6, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        expected, actual = (nets[form].double().eval()(images) for form in nets)
    assert torch.equal(expected.routing, actual.routing)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-9, atol=1e-9)


def test_its_gradients_are_those_of_the_dynamic_network():
    assert gradient_error(torch.float64) < 1e-10


def test_the_error_of_a_format_is_that_of_its_cast():
    weight = torch.randn(4, 40, generator=torch.Generator().manual_seed(0))
    scale = weight.abs().amax(1, keepdim=True) / 448
    cast = (weight / scale).to(torch.float8_e4m3fn).float() * scale
    expected = (cast - weight).square().sum() / weight.square().sum()
    error = relative_error(weight, "small float, more mantissa", 8)
    assert error == pytest.approx(expected.item(), rel=1e-5)
    assert {str(format_of(row, 4)) for row in METHODS} == {"4", "e2m1", "e3m0"}


def test_top1_of_formats_is_in_per_cent(image_folder, monkeypatch):  # noqa: F811
    """A network that calls everything a dog is right for two of the six test images."""
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    nn.init.zeros_(model[0].weight)
    model[0].bias.data = torch.tensor([0.0, 1.0, 0.0])
    monkeypatch.setattr(formats, "METHODS", {"power of two": METHODS["power of two"]})
    table = formats.measure(model.eval(), [nn.Conv2d(3, 3, 1)], image_folder("cat", "dog", "owl"))
    assert table["top1"].tolist() == pytest.approx([100 / 3] * (1 + len(formats.BITS)))


def test_gates_keep_or_drop_the_low_bits():
    conv, norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8).eval()
    layer = QuantConv2d.from_float(conv, widths=(4,), quantizer="lsq").eval()
    images = torch.rand(2, 3, 6, 6)
    layer.calibrating = True
    layer(images)
    layer.calibrating = False
    layer.input_quantizer.finish()
    gate = Gate(layer, norm, low=2)
    with torch.no_grad():
        plain = layer(images)  # collects
        step = layer.input_quantizer.encode(images, 0).scale
        coarse = (images / step).round().clamp(0, 15).div(4).floor() * 4 * step
        weight = layer.weight_quantizer(layer.weight, 0)
        rough = nn.functional.conv2d(coarse, weight, layer.bias, padding=1)
        assert not torch.allclose(plain, rough)
        for threshold, expected in ((-torch.inf, plain), (torch.inf, rough)):
            gate.threshold = threshold
            torch.testing.assert_close(layer(images), expected)
        gate.threshold, gate.skipped, gate.outputs = 0.1, 0, 0
        fine = norm(rough) > 0.1
        torch.testing.assert_close(layer(images), torch.where(fine, plain, rough))
    assert (gate.skipped, gate.outputs) == (int((~fine).sum()), fine.numel())


def test_exported_networks_are_timed_in_turn():
    report = deploy.run(None, quick=True)
    times = [row for row in report.rows if "form" in row]
    assert [row["form"] for row in times] == ["static", "dynamic"] * 2
    assert all(0 < row["minimum"] <= row["median"] <= row["maximum"] for row in times)
    ratios = [row["ratio"] for row in report.rows if "ratio" in row]
    medians = [row["median"] for row in times]
    assert ratios == [medians[1] / medians[0], medians[3] / medians[2]]


def test_every_layer_has_a_latency_at_every_precision():
    rows = layer_latencies.measure("resnet20_cifar", 10, 16, runs=3)
    net = timm.create_model("resnet20_cifar", num_classes=10)
    model = dqnet.quantize(net, torch.zeros(1, 3, 16, 16), (8, 16), first_last=8)
    assert len(rows) == 3 * len(model.layers)
    table = Table(rows)
    assert [str(own) for own in table.precisions] == ["8", "16"]
    of_8 = sum(cost for _, precision, cost in rows if precision == "8")
    assert dqnet.costs.static.StaticCosts(model, table).cost(8) == pytest.approx(of_8) and of_8 > 0


def test_each_width_has_batch_norms_of_its_own():
    net = timm.create_model("resnet20_cifar")
    how = {"controller": ControllerConfig(kind="table"), "shared_until": None}
    model = dqnet.quantize(
        net, torch.zeros(1, 3, 8, 8), (2, 4), "dorefa", width_affine=False, **how
    )
    names = [
        name for name, own in model.backbone.named_modules() if isinstance(own, nn.BatchNorm2d)
    ]
    common = copy.deepcopy(model).eval()
    split_norms(model)
    owned = [own for own in model.modules() if isinstance(own, WidthNorm)]
    assert len(owned) == len(model.routed_layers) == len(names) - 1  # the stem has one width
    images = torch.randn(12, 3, 8, 8)
    model.train()(images, uniform(model, 12, 1))  # moves the statistics of the second width alone
    assert all(own.norms[0].num_batches_tracked == 0 for own in owned)
    assert all(own.norms[1].num_batches_tracked == 1 for own in owned)
    model.eval()
    routing = torch.cat([uniform(model, 6, 0), uniform(model, 6, 1)])[torch.randperm(12)]
    answers = model(images, routing).logits
    for k in range(2):
        for name in names:
            own = model.backbone.get_submodule(name)
            own = own.norms[k] if isinstance(own, WidthNorm) else own
            common.backbone.get_submodule(name).load_state_dict(own.state_dict())
        of_width = routing[:, 0, k] == 1
        expected = common(images, uniform(model, 12, k)).logits
        torch.testing.assert_close(answers[of_width], expected[of_width], rtol=1e-4, atol=1e-5)


def test_images_that_are_wrong_are_taught_to_be_unsure():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 10, generator=generator, dtype=torch.float64)
    labels = torch.randint(10, (50,), generator=generator)
    labels[:20] = logits[:20].argmax(1)
    p = softmax(logits.numpy(), axis=1)
    total = 0.0
    for probabilities, label in zip(p, labels.tolist(), strict=True):
        if probabilities.argmax() == label:
            total -= 0.3 * np.log(probabilities[label])
        else:
            total += 0.7 * entropy(probabilities, np.full(10, 0.1))  # the divergence
    assert gatekeeper(logits, labels, 0.3).item() == pytest.approx(total / 50)
