"""The yardstick of the speed tables computes what the network computes."""

from __future__ import annotations

import torch

from benchmarks.dynamic import gradient_error, networks


def test_the_textbook_network_answers_like_the_dynamic_one():
    nets = networks("resnet20_cifar", 16, 3, torch.device("cpu"), ("textbook", "dynamic"))
    images = torch.randn(6, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        expected, actual = (nets[form].double().eval()(images) for form in nets)
    assert torch.equal(expected.routing, actual.routing)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-9, atol=1e-9)


def test_its_gradients_are_those_of_the_dynamic_network():
    assert gradient_error(torch.float64) < 1e-10
