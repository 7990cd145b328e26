"""Networks with Winograd convolutions: which layers become one, and what their plans say."""

from __future__ import annotations

import json
import re
import warnings

import pytest
import torch
from torch import nn

import dqnet
from dqnet.errors import UserError
from dqnet.export.lower import lower
from dqnet.layers import Winograd
from dqnet.plan import Plan

#: name → the layer, and why it is multiplied directly
LAYERS = {
    "first": (lambda: nn.Conv2d(3, 4, 3, padding=1), "full precision"),
    "plain": (lambda: nn.Conv2d(4, 8, 3, padding=1), None),
    "strided": (lambda: nn.Conv2d(8, 8, 3, stride=2, padding=1), "stride 2"),
    "wide": (lambda: nn.Conv2d(8, 8, 5, padding=2), "5 x 5"),
    "point": (lambda: nn.Conv2d(8, 8, 1), "1 x 1"),
    "depthwise": (lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8), "8 groups"),
    "dilated": (lambda: nn.Conv2d(8, 8, 3, padding=2, dilation=2), "dilation 2"),
    "valid": (lambda: nn.Conv2d(8, 6, 3), None),
}


def network():
    torch.manual_seed(0)
    net = nn.Sequential()
    for name, (layer, _) in LAYERS.items():
        net.add_module(name, layer())
        net.add_module(f"{name}_act", nn.ReLU())
    net.add_module("pool", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    net.add_module("head", nn.Linear(6, 5))
    return net


def converted(size=12, net=None, **options):
    options = {"widths": (8,), "quantizer": "affine"} | options
    model = dqnet.quantize(net or network(), torch.zeros(1, 3, size, size), **options)
    dqnet.calibrate(model, [torch.randn(4, 3, size, size, generator=torch.Generator())])
    return model


def with_warning(**options):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        model = converted(**options)
    return model, [str(warning.message) for warning in found if "winograd" in str(warning.message)]


def test_the_layers_that_can_become_one_and_the_others_are_listed_in_a_line():
    model, lines = with_warning(winograd=Winograd(2))
    reasons = {
        name: reason
        for name, (_, reason) in LAYERS.items()
        if reason not in (None, "full precision")
    }
    named = ", ".join(f"{name} ({reason})" for name, reason in reasons.items())
    assert lines == [f"winograd: multiplied directly as before: {named}"]
    plan = {layer.name: layer.winograd for layer in model.layers}
    assert {name for name, how in plan.items() if how} == {"plain", "valid"}
    assert model.backbone.plain.winograd.how == plan["plain"] == Winograd(2)
    assert model.backbone.strided.winograd is None
    assert with_warning()[1] == []


def test_it_answers_nearly_as_the_direct_network():
    images = torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    direct = converted().eval()(images).logits
    error = {}
    for scales in ("tap", "layer"):
        model, _ = with_warning(winograd=Winograd(4, scales, bits=10))
        error[scales] = (model.eval()(images).logits - direct).norm() / direct.norm()
    assert error["tap"] < 0.05 and error["tap"] < error["layer"]


def test_a_plan_with_them_survives_and_is_carried_out(tmp_path):
    model, _ = with_warning(winograd=Winograd(4, bits=10))
    model.plan.save(tmp_path / "plan.json")
    plan = Plan.load(tmp_path / "plan.json")
    assert plan == model.plan
    again, lines = with_warning(plan=plan)
    assert again.plan == plan and again.backbone.plain.winograd.how == Winograd(4, bits=10)
    assert lines == []


def test_a_plan_edited_by_hand_mixes_tiles_and_is_counted_anew(tmp_path):
    lines = converted().plan.to_json()
    layers = {line["name"]: line for line in lines["layers"]}
    layers["plain"]["winograd"], layers["valid"]["winograd"] = {"tile": 2}, {"bits": 10}
    (tmp_path / "plan.json").write_text(json.dumps(lines))
    model = converted(plan=Plan.load(tmp_path / "plan.json"))
    assert model.backbone.plain.winograd.how == Winograd(2)
    assert model.backbone.valid.winograd.how == Winograd(4, bits=10)
    counts = {layer.name: layer.multiplications for layer in model.layers if layer.winograd}
    # 6 x 6 tiles of 2 x 2; 4 x 4 outputs, the image having been halved, are one tile.
    assert counts == {"plain": 36 * 16 * 4 * 8, "valid": 36 * 8 * 6}


def test_a_plan_for_images_of_another_size_is_counted_anew():
    plan = with_warning(winograd=Winograd(4))[0].plan
    model, lines = with_warning(size=16, plan=plan)
    assert lines == []
    assert model.plan == with_warning(size=16, winograd=Winograd(4))[0].plan


@pytest.mark.parametrize(
    ("layer", "entry", "message"),
    [
        ("strided", {"tile": 4}, "layer 'strided' cannot be a Winograd convolution: stride 2"),
        ("first", {"tile": 4}, "layer 'first' cannot be a Winograd convolution: full precision"),
        ("head", {"tile": 4}, "layer 'head' cannot be a Winograd convolution: not a convolution"),
        ("plain", {"tile": 5}, "layer 'plain' of the plan: winograd tile 5 must be 2 or 4"),
        ("plain", {"tyle": 4}, "layer 'plain' of the plan: unknown key of winograd 'tyle'"),
        ("plain", 4, "layer 'plain' of the plan: winograd 4 must be a table"),
    ],
)
def test_a_wrong_entry_of_a_plan_is_refused_by_name(layer, entry, message):
    lines = converted().plan.to_json()
    next(line for line in lines["layers"] if line["name"] == layer)["winograd"] = entry
    with pytest.raises(UserError, match=re.escape(message)):
        converted(plan=Plan.from_json(lines))


def test_what_has_none_to_offer_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(64, 5))
    with pytest.raises(UserError, match="no quantized layer is a 3 x 3 convolution of stride 1"):
        converted(4, net, winograd=Winograd())


def test_a_routed_layer_is_refused():
    with pytest.raises(UserError, match="routed among several precisions; give it one"):
        converted(widths=(4, 8), shared_until="first", winograd=Winograd())


def test_a_refused_network_stays_as_it_was():
    net = network()
    with pytest.raises(UserError, match="affine, symmetric, lsq or fixed_point, not DoReFaWeight"):
        converted(net=net, quantizer="dorefa", winograd=Winograd())
    assert type(net.plain) is nn.Conv2d


def test_a_changed_network_keeps_them():
    model, _ = with_warning(winograd=Winograd(2))
    before = {layer.name: layer for layer in model.layers}
    model.backbone.head = nn.Linear(6, 3)
    after = {layer.name: layer for layer in model.plan.layers}
    assert after["plain"] == before["plain"] and after["valid"] == before["valid"]


def test_no_exported_network_has_one():
    model, _ = with_warning(winograd=Winograd(2))
    with pytest.raises(UserError, match="layer 'plain' is a quantized Winograd convolution, which"):
        lower(model)


def test_float_weights_may_be_loaded_afterwards():
    """Scales are then set anew, by the first batch."""
    net = network()
    state = {name: 3 * value for name, value in net.state_dict().items()}
    model, _ = with_warning(net=net, winograd=Winograd())
    before = model.backbone.plain.winograd.input_quantizer.log2_threshold.clone()
    model.load_state_dict(state)
    assert not model.backbone.plain.winograd.ready
    model(torch.randn(4, 3, 12, 12))
    assert model.backbone.plain.winograd.ready
    assert not torch.equal(before, model.backbone.plain.winograd.input_quantizer.log2_threshold)


def test_an_exported_program_answers_as_the_network_on_other_images():
    model = with_warning(winograd=Winograd(2))[0].eval()
    first, second = torch.randn(2, 3, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    program = torch.export.export(model, (first,)).module()
    assert torch.equal(program(second)[0], model(second).logits)
