"""Bias correction against means measured with hooks of their own."""

from __future__ import annotations

import pytest
import torch
from small_networks import batches, calibrated
from torch import nn

import dqnet
from dqnet.layers import QuantLayer
from dqnet.post_training import correct_biases


def means(model, images):
    """Every layer's mean output of each channel."""
    found = {}

    def hook(name):
        def note(module, args, output):
            found[name] = output.flatten(2).mean((0, 2)) if output.dim() == 4 else output.mean(0)

        return note

    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, QuantLayer)]
    handles = [module.register_forward_hook(hook(name)) for name, module in layers]
    with torch.no_grad():
        model.eval()(images)
    for handle in handles:
        handle.remove()
    return found


def test_every_layers_means_are_those_of_full_precision():
    model, images = calibrated(widths=(2,)), batches(40)[0]
    with model.unquantized():
        wanted = means(model, images)
    before = means(model, images)
    correct_biases(model, images)
    after = means(model, images)
    assert len(wanted) == 6
    for name, mean in wanted.items():
        torch.testing.assert_close(after[name], mean, rtol=1e-4, atol=1e-5)
    assert any((before[name] - mean).abs().max() > 0.05 for name, mean in wanted.items())


def test_weights_and_the_mode_are_left_alone():
    model = calibrated(widths=(3,)).train()
    before = {n: p.clone() for n, p in model.named_parameters()}
    correct_biases(model, batches(10)[0])
    assert model.training
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {n for n in before if n.endswith("bias")}


def test_a_layer_without_a_bias_is_named():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten())
    model = dqnet.quantize(net, torch.zeros(1, 3, 8, 8), (8,), "affine", full_precision=[])
    with pytest.raises(dqnet.UserError, match="has no bias to correct: fold the batch norms"):
        correct_biases(model, batches(4)[0])
