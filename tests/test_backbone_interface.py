"""What timm's and others' helpers find in a converted network: what they find in the float one."""

import copy

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from timm.models import group_modules, group_parameters
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm.utils import get_state_dict, unwrap_model
from torch import nn

import dqnet
from dqnet import UserError
from dqnet.state_dicts import added_by_conversion

SAMPLE = torch.zeros(1, 3, 64, 64)


def pair(name, **kwargs):
    """A float network, and the same one converted."""
    net = timm.create_model(name, num_classes=10)
    return net, dqnet.quantize(copy.deepcopy(net), SAMPLE, **kwargs)


@pytest.mark.parametrize("name", ["tf_mobilenetv3_small_minimal_100", "resnet18"])
def test_preprocessing_is_that_of_the_float_network(name):
    net, model = pair(name, widths=(4,))
    config = resolve_model_data_config(net)
    assert resolve_model_data_config(model) == config
    assert config != resolve_model_data_config(nn.Identity())


def test_attributes_are_the_backbones_where_the_wrapper_has_none():
    net, model = pair("resnet18")
    for name in ("num_classes", "num_features", "pretrained_cfg", "default_cfg", "feature_info"):
        assert getattr(model, name) == getattr(net, name)
    assert model.get_classifier() is model.backbone.fc
    model.reset_classifier(3)
    assert model.num_classes == 3 and model.layers[-1].weights == 3 * 512
    with pytest.raises(AttributeError, match="'QuantizedModel' object has no attribute 'absent'"):
        model.absent  # noqa: B018
    assert not hasattr(model, "_absent")


def test_features_of_a_static_network_may_be_asked_for():
    model = pair("resnet18", widths=(3,))[1].eval()
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(model.forward_head(model.forward_features(x)), model(x).logits)
    model = pair("resnet18")[1].eval()
    with pytest.raises(UserError, match="ran outside model"):
        model.forward_features(x)


def test_unwrapping_stops_at_the_converted_network():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(64, 2))

        def forward(self, x):
            return self.module(x)

    model = dqnet.quantize(Named(), torch.zeros(1, 3, 4, 4), (3,), full_precision=[])
    assert unwrap_model(model) is model
    assert list(get_state_dict(model)) == list(model.state_dict())
    model = dqnet.quantize(timm.create_model("resnet18"), SAMPLE)
    assert unwrap_model(torch.compile(model)) is model


# Groups of parameters


def groups_by_name(model, groups, key):
    names = {id(p): n for n, p in model.named_parameters()}
    return {names[id(p)]: group[key] for group in groups for p in group["params"]}


@pytest.mark.parametrize("widths", [(3,), (2, 3, 4)])
@pytest.mark.parametrize(
    "name", ["resnet18", "convnext_atto", "efficientnet_lite0", "resnet20_cifar"]
)
def test_layers_learn_at_the_float_networks_rates(name, widths):
    net, model = pair(name, widths=widths)
    options = {"opt": "adamw", "lr": 1.0, "weight_decay": 0.1, "layer_decay": 0.5}
    scales, decays = (
        [
            groups_by_name(m, create_optimizer_v2(m, **options).param_groups, key)
            for m in (net, model)
        ]
        for key in ("lr_scale", "weight_decay")
    )
    for expected, actual in (scales, decays):
        assert len(set(expected.values())) > 1
        assert {k: actual.pop(f"backbone.{k}") for k in expected} == expected
    for name, scale in scales[1].items():  # what conversion added
        if name.startswith("controller."):
            assert scale == 1
        else:
            layer = name[: name.rindex(".affine.")] + ".weight"
            assert scale == scales[0][layer.removeprefix("backbone.")]


@pytest.mark.parametrize("coarse", [False, True])
def test_groups_of_modules_are_the_float_networks(coarse):
    net, model = pair("resnet18", widths=(3,))
    for grouped in (group_modules, group_parameters):
        expected = grouped(net, net.group_matcher(coarse=coarse), reverse=True)
        actual = grouped(model, model.group_matcher(coarse=coarse), reverse=True)
        assert {k: actual[f"backbone.{k}"] for k in expected} == expected


@pytest.mark.parametrize("quantizer", ["dorefa", "pact", "lsq"])
def test_what_conversion_added_has_no_weight_decay(quantizer):
    model = pair("resnet18", quantizer=quantizer)[1]
    groups = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05).param_groups
    decays = groups_by_name(model, groups, "weight_decay")
    added = {name for name in decays if added_by_conversion(name)}
    assert added and {decays[name] for name in added} == {0}
    assert decays["backbone.layer2.0.conv1.weight"] == decays["controller.fc2.weight"] == 0.05


def test_the_float_networks_own_exceptions_from_weight_decay_are_kept():
    net = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=10)
    expected = net.no_weight_decay()
    model = dqnet.quantize(net, SAMPLE, widths=(3,))
    assert "pos_embed" in expected
    assert {f"backbone.{name}" for name in expected} <= model.no_weight_decay()
    groups = param_groups_layer_decay(model, 0.1, model.no_weight_decay())
    assert groups_by_name(model, groups, "weight_decay")["backbone.pos_embed"] == 0


# Gradient checkpointing


def gradients(model):
    torch.manual_seed(0)
    model.train()(torch.randn(4, 3, 64, 64)).logits.square().sum().backward()
    return [p.grad for p in model.parameters()]


def test_a_static_network_may_use_gradient_checkpointing():
    model = pair("resnet18", widths=(3,))[1]
    other = copy.deepcopy(model)
    other.set_grad_checkpointing()
    assert other.backbone.grad_checkpointing
    for a, b in zip(gradients(model), gradients(other), strict=True):
        torch.testing.assert_close(a, b)


def test_a_dynamic_network_refuses_gradient_checkpointing_at_once():
    model = pair("resnet18")[1]
    with pytest.raises(UserError, match="checkpoint it as a whole") as error:
        model.set_grad_checkpointing()
    assert "\n" not in str(error.value) and not model.backbone.grad_checkpointing
    model.set_grad_checkpointing(False)
