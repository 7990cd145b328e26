"""State dicts of the time when a layer had one quantizer for both of its tensors."""

from __future__ import annotations

import pytest
import timm
import torch

import dqnet
from dqnet.training.weights import load_own_weights

#: today's name → the old one; the weight's own flags did not exist
OLD = {
    "weight_quantizer.step": "quantizer.weight_step",
    "input_quantizer.step": "quantizer.input_step",
    "input_quantizer.alpha": "quantizer.alpha",
    "input_quantizer.signed_form": "quantizer.signed_form",
    "input_quantizer.initialized": "quantizer.initialized",
    "weight_quantizer.signed_form": None,
    "weight_quantizer.initialized": None,
}


def fresh(quantizer):
    torch.manual_seed(0)
    net = timm.create_model("resnet20_cifar", num_classes=4)
    return dqnet.quantize(net, torch.zeros(1, 3, 8, 8), widths=(2, 4), quantizer=quantizer)


def as_it_was(state):
    """Under the old names, with the old types."""
    old = {}
    for key, value in state.items():
        for new, before in OLD.items():
            if key.endswith(new):
                key = before and key.removesuffix(new) + before
                value = value.bool() if new.endswith(("signed_form", "initialized")) else value
                break
        if key is not None:
            old[key] = value
    return old


@pytest.mark.parametrize("quantizer", ["dorefa", "pact", "lsq"])
@pytest.mark.parametrize("loaded_by", ["load_state_dict", "eval.py"])
def test_they_load_and_answer_the_same(quantizer, loaded_by):
    images = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    model = fresh(quantizer)
    with torch.no_grad():
        model.eval()(images)  # LSQ's first batch
        for parameter in model.parameters():
            parameter.mul_(1.1)
        expected = model(images)
    old = as_it_was(model.state_dict())
    assert any(".quantizer." in key for key in old)
    assert not any("_quantizer." in key for key in old)
    other = fresh(quantizer).eval()
    if loaded_by == "eval.py":
        load_own_weights(other, {"ema": None, "model": old}, "old.pt")
    else:
        other.load_state_dict(old)
    with torch.no_grad():
        actual = other(3 * images), other(images)  # the steps are set already
    assert torch.equal(actual[1].logits, expected.logits)
    assert torch.equal(actual[1].routing, expected.routing)
