"""Calibration against statistics of the float network, and LSQ's first batch."""

from __future__ import annotations

import copy
import math

import pytest
import timm
import torch
from torch import nn

import dqnet
from dqnet import UserError
from dqnet.layers import QuantLayer


def float_net():
    torch.manual_seed(0)
    return timm.create_model("resnet20_cifar", num_classes=4)


def converted(**kwargs):
    return dqnet.quantize(float_net(), torch.zeros(1, 3, 8, 8), quantizer="lsq", **kwargs)


def batches(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 3, 8, 8, generator=generator) for size in sizes]


def inputs_of(net, images):
    """What every layer of a float network reads."""
    seen = {}
    handles = [
        module.register_forward_pre_hook(lambda m, args, name=name: seen.update({name: args[0]}))
        for name, module in net.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        net.eval()(images)
    for handle in handles:
        handle.remove()
    return seen


def first_steps(values, widths, signed):
    """Section 2.1 of the LSQ paper."""
    mean = values.abs().mean().item()
    top = [2 ** (b - 1) - 1 if signed else 2**b - 1 for b in widths]
    return [2 * mean / math.sqrt(q) for q in top]


@pytest.mark.parametrize("widths", [(4,), (2, 3, 4)])
def test_steps_are_those_of_the_float_networks_values_over_all_batches(widths):
    model, images = converted(widths=widths), batches(6, 6, 3)
    assert dqnet.calibrate(model, images) == 15
    float_inputs = inputs_of(float_net(), torch.cat(images))
    layers = {n: m for n, m in model.backbone.named_modules() if isinstance(m, QuantLayer)}
    assert len(layers) == 18
    for name, layer in layers.items():
        own, signed = layer.widths, layer.input_quantizer.signed
        expected = first_steps(float_inputs[name], own, signed)
        assert layer.input_quantizer.step.tolist() == pytest.approx(expected, rel=1e-4)
        expected = first_steps(layer.weight.detach(), own, True)
        assert layer.weight_quantizer.step.tolist() == pytest.approx(expected, rel=1e-5)


def test_calibration_leaves_weights_statistics_and_mode_as_they_were():
    model = converted(widths=(2, 4)).train()
    model.backbone.layer1.eval()
    before = {k: v.clone() for k, v in model.state_dict().items() if "_quantizer." not in k}
    modes = [module.training for module in model.modules()]
    dqnet.calibrate(model, batches(4))
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert [module.training for module in model.modules()] == modes


def test_after_calibration_the_first_batch_sets_nothing():
    model = converted(widths=(3,))
    dqnet.calibrate(model, batches(4))
    steps = [m.step.clone() for m in model.modules() if hasattr(m, "step")]
    model.train()(100 * batches(4)[0])
    assert all(
        torch.equal(old, m.step)
        for old, m in zip(steps, (m for m in model.modules() if hasattr(m, "step")), strict=True)
    )


def test_without_calibration_the_first_batch_sets_the_steps():
    """The mode of the paper: each layer sees what the quantized layers before it made."""
    model, images = converted(widths=(8,)), batches(5)[0]
    other = copy.deepcopy(model)
    with torch.no_grad():
        model.eval()(images)
    stem = model.backbone.layer1[0].conv1
    expected = first_steps(inputs_of(float_net(), images)["layer1.0.conv1"], (8,), False)
    assert stem.input_quantizer.step.tolist() == pytest.approx(expected, rel=1e-5)
    dqnet.calibrate(other, [images])
    steps = [[m.step.item() for m in net.modules() if hasattr(m, "step")] for net in (model, other)]
    assert steps[0][:3] == pytest.approx(steps[1][:3], rel=1e-5)
    assert steps[0][3] != pytest.approx(steps[1][3], rel=1e-3)


def test_a_calibration_replaces_an_earlier_one():
    model, once = converted(widths=(3,)), converted(widths=(3,))
    dqnet.calibrate(model, [100 * batch for batch in batches(4)])
    dqnet.calibrate(model, batches(6))
    dqnet.calibrate(once, batches(6))
    pairs = zip(model.state_dict().values(), once.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_an_error_in_a_batch_leaves_the_model_running_quantized():
    model = converted(widths=(3,))
    with pytest.raises(RuntimeError):
        dqnet.calibrate(model, [*batches(4), torch.zeros(2, 5, 8, 8)])
    assert not any(m.calibrating for m in model.modules() if isinstance(m, QuantLayer))


def test_what_cannot_be_calibrated_is_refused():
    with pytest.raises(UserError, match="at least one batch"):
        dqnet.calibrate(converted(widths=(3,)), [])
    with pytest.raises(UserError, match="no quantized layer"):
        dqnet.calibrate(float_net(), batches(2))


def test_eight_bits_after_calibration_answer_like_the_float_network():
    """Its steps are LSQ's, which clip little at 8 bits: the logits move by a few per cent."""
    images = batches(32)[0]
    model = converted(widths=(8,))
    dqnet.calibrate(model, [images])
    with torch.no_grad():
        expected, actual = float_net().eval()(images), model.eval()(images).logits
    assert (actual - expected).norm() < 0.1 * expected.norm()
