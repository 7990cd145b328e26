"""Plans as values: saved, edited by hand, loaded, refused; and the rules that make them."""

from __future__ import annotations

import dataclasses
import json

import pytest
import timm
import torch
from torch import nn

import dqnet
from dqnet import Plan, UserError
from dqnet.formats import Precision
from dqnet.plan import LayerPlan


def converted(net=None, size=8, **rules):
    net = net or timm.create_model("resnet20_cifar", num_classes=4)
    return dqnet.quantize(net, torch.zeros(1, 3, size, size), **rules)


def at(model):
    """What every layer runs at, by name."""
    return {layer.name: layer.widths for layer in model.layers}


def text_of(plan, tmp_path, edit):
    """The plan's file, changed by a function of its lines."""
    path = tmp_path / "plan.json"
    plan.save(path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(edit(lines)))
    return path


# A value


def test_a_plan_survives_save_and_load(tmp_path):
    rules = {"widths": ("w2a4", "w4a4", "w2a8"), "first_last": 8}
    plan = converted(**rules, layers={"layer3.2.*": [2, 8], "layer3.1.conv1": "full"}).plan
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    again = converted(plan=Plan.load(tmp_path / "plan.json"))
    assert again.plan == plan


def test_a_plan_has_a_line_for_every_layer_in_order(tmp_path):
    net = timm.create_model("resnet20_cifar", num_classes=4)
    names = [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    plan = converted(net).plan
    plan.save(tmp_path / "plan.json")
    lines = (tmp_path / "plan.json").read_text().splitlines()[1:-1]
    assert [json.loads(line.rstrip(","))["name"] for line in lines] == names


def test_elements_are_those_of_one_image():
    """Against the shapes of a 3 x 3 convolution of stride 2 and of a classifier."""
    layers = {layer.name: layer for layer in converted(size=32).layers}
    conv, head = layers["layer2.0.conv1"], layers["linear"]
    assert (conv.weights, conv.inputs, conv.outputs) == (32 * 16 * 9, 16 * 32**2, 32 * 16**2)
    assert conv.macs == 32 * 16 * 9 * 16**2
    assert (head.weights, head.inputs, head.outputs, head.macs) == (256, 64, 4, 256)


def test_an_edited_plan_is_carried_out(tmp_path):
    def edit(lines):
        return [
            line.replace('"static", "precisions": [3]', '"static", "precisions": ["w4a8"]')
            if "layer1.0.conv1" in line
            else line.replace("[2, 3, 4]", "[2, 8]")
            if "layer2.0.conv2" in line
            else line
            for line in lines
        ]

    path = text_of(converted().plan, tmp_path, edit)
    model = converted(plan=Plan.load(path))
    assert at(model)["layer1.0.conv1"] == ("w4a8",) and at(model)["layer2.0.conv2"] == (2, 8)
    assert model.backbone.layer1[0].conv1.precisions == (Precision.parse("w4a8"),)
    assert model.widths == (2, 3, 4, 8)
    images = torch.randn(3, 3, 8, 8)
    logits, routing = model.eval()(images)
    assert logits.shape == (3, 4) and routing.shape == (3, 12, 4)
    column = [layer.name for layer in model.routed_layers].index("layer2.0.conv2")
    assert routing[:, column, 1:3].sum() == 0


BAD_LINES = [
    ('"static"', '"statik"', r"unknown role of layer 'layer1.0.conv1' 'statik'; did you mean"),
    ("[3]", "[17]", r"layer 'layer1.0.conv1' of the plan: width 17 is out of range"),
    ("[3]", '["w4"]', r"layer 'layer1.0.conv1' of the plan: 'w4' is not a precision"),
    ("[3]", "[2, 3]", r"layer 'layer1.0.conv1' is static with 2 precisions.*one precision"),
    ('"static"', '"full"', r"layer 'layer1.0.conv1' is full with 1 precisions"),
    ('"static"', '"routed"', r"layer 'layer1.0.conv1' is routed with 1 precisions.*several"),
    ('"macs"', '"mac"', r"unknown key of layer 'layer1.0.conv1' in a plan 'mac'; did you mean"),
    ('"macs": ', '"macs": -', r"layer 'layer1.0.conv1' has macs -\d+; it is a count"),
    ('"layer1.0.conv1"', '"conv1"', r"the plan has layer 'conv1' more than once"),
    ('"name"', '"nom"', r"a plan's layer has no name"),
]


@pytest.mark.parametrize(("old", "new", "message"), BAD_LINES)
def test_one_bad_line_is_refused_by_name(tmp_path, old, new, message):
    def edit(lines):
        return [line.replace(old, new, 1) if "layer1.0.conv1" in line else line for line in lines]

    path = text_of(converted().plan, tmp_path, edit)
    with pytest.raises(UserError, match=f"plan.json: .*{message}") as error:
        Plan.load(path)
    assert "\n" not in str(error.value)


NO_PLANS = ["", "[]", "{}", '{"layers": []}', "{'a'", '{"layers": [3]}']


@pytest.mark.parametrize("text", NO_PLANS)
def test_what_is_not_a_plan_is_refused(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(UserError, match=r"plan\.json"):
        Plan.load(tmp_path / "plan.json")
    with pytest.raises(UserError, match="cannot be read: No such file"):
        Plan.load(tmp_path / "nowhere.json")


@pytest.mark.parametrize("shape", ["8", "[8, 8]", "[1, 8, 0]", "[1, 8, 8.0]"])
def test_images_of_no_size_are_refused(tmp_path, shape):
    path = text_of(converted().plan, tmp_path, lambda lines: [
        line.replace("[3, 8, 8]", shape) for line in lines
    ])  # fmt: skip
    with pytest.raises(UserError, match=r"image_shape .* is not \[channels, height, width\]"):
        Plan.load(path)


OTHER_MODELS = [
    ({"net": "resnet32_cifar"}, "it has layer 'layer2.0.conv1' where .* 'layer1.3.conv1'"),
    ({"classes": 5}, "layer 'linear' has macs 256, in the model 320"),
]


@pytest.mark.parametrize(("other", "difference"), OTHER_MODELS)
def test_a_plan_of_another_model_is_refused_with_the_first_difference(other, difference):
    plan = converted().plan
    net = timm.create_model(other.get("net", "resnet20_cifar"), num_classes=other.get("classes", 4))
    with pytest.raises(UserError, match=f"the plan is of another model: {difference}"):
        converted(net, plan=plan)
    assert not any(isinstance(m, dqnet.layers.QuantLayer) for m in net.modules())


def test_a_plan_with_other_counts_at_the_same_size_is_refused():
    plan = converted(size=16).plan
    named = dataclasses.replace(plan, image_shape=(3, 8, 8))
    with pytest.raises(UserError, match="layer 'conv1' has macs 110592, in the model 27648"):
        converted(plan=named)


RULES = {"widths": (2, 4), "first_last": 8, "layers": {"layer3.*": "w4a8"}}


@pytest.mark.parametrize(("named", "old"), [(True, "8 x 8"), (False, "another size")])
def test_a_plan_of_images_of_another_size_is_counted_anew(tmp_path, named, old):
    """Roles and precisions are the file's, counts those of a plan made at the new size."""
    plan = converted(**RULES).plan
    (plan if named else Plan(plan.layers)).save(tmp_path / "plan.json")
    with pytest.warns(UserWarning, match=f"images of {old} and these are of 16 x 16") as warned:
        model = converted(size=16, plan=Plan.load(tmp_path / "plan.json"))
    assert len(warned) == 1
    there = converted(size=16, **RULES)
    assert model.plan == there.plan and model.plan.image_shape == (3, 16, 16)
    assert dqnet.static_bit_flops(model, 3) == dqnet.static_bit_flops(there, 3)


def test_a_plan_without_a_size_is_carried_out_where_it_fits(recwarn):
    plan = converted(**RULES).plan
    assert converted(plan=Plan(plan.layers)).plan.image_shape == (3, 8, 8)
    assert not recwarn


def test_a_plan_that_lacks_the_last_layer_is_refused():
    plan = converted().plan
    with pytest.raises(UserError, match="only the model has layer 'linear'"):
        converted(plan=Plan(plan.layers[:-1]))


def test_a_plan_that_routes_before_the_split_point_is_refused():
    plan = converted(shared_until="layer1").plan
    with pytest.raises(UserError, match=r"'layer2.0.conv1' runs before the split point 'layer2'"):
        converted(plan=plan, shared_until="layer2")


# Rules


def test_the_last_match_wins():
    layers = {"layer2.*": 8, "layer2.0.*": "full", "layer2.0.conv2": ["w2a4", "w4a8"]}
    found = at(converted(layers=layers))
    assert found["layer2.1.conv1"] == (8,) and found["layer2.0.conv1"] == ()
    assert found["layer2.0.conv2"] == ("w2a4", "w4a8") and found["layer3.0.conv1"] == (2, 3, 4)
    turned = at(converted(layers=dict(reversed(layers.items()))))
    assert turned["layer2.0.conv2"] == (8,)


def test_layers_go_before_every_other_rule():
    rules = {"full_precision": ["conv1", "layer2.0.*"], "static": ["layer2.1.*"], "first_last": 8}
    found = at(converted(**rules, layers={"conv1": 4, "layer2.*": [2, 4]}))
    assert found["conv1"] == (4,) and found["linear"] == (8,)
    assert {found[f"layer2.{i}.conv{j}"] for i in range(3) for j in (1, 2)} == {(2, 4)}


@pytest.mark.parametrize("widths", [(3,), (2, 3, 4)])
def test_first_and_last_in_eight_bits(widths):
    model = converted(widths=widths, first_last=8)
    layers = {layer.name: layer for layer in model.layers}
    assert {name for name, layer in layers.items() if layer.pinned} == {"conv1", "linear"}
    assert layers["conv1"].widths == layers["linear"].widths == (8,)
    assert model.widths == widths
    ends = 64 * (layers["conv1"].macs + layers["linear"].macs)
    rest = sum(layer.macs for layer in model.layers) - ends // 64
    assert dqnet.static_bit_flops(model, 3) == 9 * rest + ends


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"layers": {"layer9.*": 8}}, r"unknown quant.layers layer 'layer9.\*'"),
        ({"layers": {"layer3.*": "half"}}, r"rule 'layer3.\*': 'half' is not a precision.*'full'"),
        ({"layers": {"layer3.*": [4, 2]}}, r"rule 'layer3.\*': widths \(4, 2\).*ascending"),
        ({"layers": [3]}, r"layers \[3\] is not a table of pattern: rule"),
        ({"layers": {"layer1.0.*": [2, 4]}}, "'layer1.0.conv1' runs before the split point"),
        ({"first_last": "none"}, "rule 'first_last': 'none' is not a precision.*'full'"),
        ({"first_last": [2, 8]}, r"first_last \[2, 8\] must be 'full' or one precision"),
    ],
)
def test_wrong_rules_are_refused(rules, message):
    with pytest.raises(UserError, match=message):
        converted(**rules)


def test_a_list_in_the_layers_makes_a_static_network_dynamic():
    model = converted(widths=(3,), layers={"layer3.*": [2, 4]})
    assert len(model.routed_layers) == 6 and model.widths == (2, 4)
    assert at(model)["layer2.0.conv1"] == (3,) and model.controller is not None


def test_a_static_plan_of_several_precisions():
    model = converted(widths=(3,), layers={"layer3.*": 2, "layer1.*": "w4a8"})
    assert model.controller is None and model.routed_layers == ()
    by_hand = sum(
        layer.macs * {"layer1": 32, "layer2": 9, "layer3": 4}[layer.name.partition(".")[0]]
        for layer in model.layers
        if layer.role == "static"
    )
    routing = model(torch.randn(2, 3, 8, 8)).routing
    assert dqnet.bit_flops(model, routing).tolist() == [by_hand] * 2


def test_a_product_of_activations_is_a_layer_in_full_precision():
    net = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2)
    plan = dqnet.quantize(net, torch.zeros(1, 3, 32, 32), widths=(3,)).plan
    names = [layer.name for layer in plan.layers]
    assert names[1:4] == ["blocks.0.attn.qkv", "blocks.0.attn", "blocks.0.attn.proj"]
    (attention,) = (layer for layer in plan.layers if layer.name == "blocks.0.attn")
    tokens, channels = 4 * 4 + 1, 192
    assert attention == LayerPlan("blocks.0.attn", "full", macs=2 * tokens**2 * channels)
