"""Modules that change after conversion: costs are those of the network as it is, or refused."""

import copy
import pickle

import pytest
import timm
import torch
from timm.utils import ModelEmaV3, reparameterize_model
from torch import nn
from torch.nn.utils import parametrizations, prune

import dqnet
from dqnet import UserError
from dqnet.layers import QuantConv2d
from dqnet.layers.global_batch_norm import synchronize_batch_norms

SIZE = 32
SAMPLE = torch.zeros(1, 3, SIZE, SIZE)


def network(name="resnet18", num_classes=10):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=num_classes)


def convert(net, widths=(2, 3, 4), **kwargs):
    return dqnet.quantize(net, SAMPLE, widths=widths, **kwargs).eval()


def no_pooling(net):
    net.maxpool = nn.Identity()


def stride_of_one(net):
    net.conv1.stride = (1, 1)


def other_head(net):
    net.fc = nn.Linear(512, 77)


def deep_head(net):
    net.fc = nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10))


def no_head(net):
    net.reset_classifier(0)


def fewer_channels(net):
    """As structured pruning does it: other weights in the same modules."""
    block, kept = net.layer2[1], torch.arange(48)
    block.conv1.weight = nn.Parameter(block.conv1.weight.data[kept])
    block.conv2.weight = nn.Parameter(block.conv2.weight.data[:, kept])
    block.bn1 = nn.BatchNorm2d(48)


CHANGES = [no_pooling, stride_of_one, other_head, deep_head, no_head, fewer_channels]


@pytest.mark.parametrize("widths", [(2, 3, 4), (3,)])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_after_conversion_costs_what_it_costs_before(change, widths):
    net = network()
    change(net)
    # Gains of widths have a value for every channel, and are not pruned here.
    kwargs = {"widths": widths, "width_affine": False}
    expected = convert(net, full_precision=["conv1", *["fc*"] * (change is not no_head)], **kwargs)
    model = convert(network(), **kwargs)
    before = model.plan
    change(model.backbone)
    assert model.plan == expected.plan != before
    routing = model(torch.randn(2, 3, SIZE, SIZE)).routing
    for full in (False, True):
        costs = [dqnet.bit_flops(m, routing, full).tolist() for m in (model, expected)]
        assert costs[0] == costs[1]
    assert dqnet.static_bit_flops(model, 3) == dqnet.static_bit_flops(expected, 3)


def test_a_float_layer_in_the_place_of_a_static_one_is_in_full_precision():
    model = convert(network(), full_precision=["conv1"])
    assert roles(model)["fc"] == "static"
    model.backbone.reset_classifier(7)
    assert roles(model)["fc"] == "full"
    assert model.layers[-1].weights == 512 * 7


def roles(model):
    return {layer.name: layer.role for layer in model.layers}


class Adapted(nn.Module):
    """A layer with a low-rank path beside it."""

    def __init__(self, layer, rank=2):
        super().__init__()
        self.layer = layer
        self.down = nn.Conv2d(128, rank, 3, padding=1, bias=False)
        self.up = nn.Conv2d(rank, 128, 1, bias=False)

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))


def test_an_adapter_around_a_routed_layer_is_counted_beside_it():
    model = convert(network())
    x = torch.randn(2, 3, SIZE, SIZE)
    before = model(x)
    cost = dqnet.bit_flops(model, before.routing, full_precision=True)
    block = model.backbone.layer2[0]
    block.conv2 = Adapted(block.conv2)
    nn.init.zeros_(block.conv2.up.weight)
    after = model(x)
    assert torch.equal(after.routing, before.routing)
    added = 4 * 4 * 128 * (2 * 9 + 2)  # multiply-accumulates on 4 x 4 positions
    counted = dqnet.bit_flops(model, after.routing, full_precision=True)
    assert torch.equal(counted, cost + 32 * 32 * added)
    assert "layer2.0.conv2.layer" in [layer.name for layer in model.routed_layers]


@pytest.mark.parametrize(
    "change",
    [
        lambda net: setattr(net, "layer2", torch.compile(net.layer2, backend="eager")),
        lambda net: parametrizations.weight_norm(net.layer2[0].conv2),
        lambda net: parametrizations.orthogonal(net.layer2[0].conv2),
        lambda net: prune.custom_from_mask(
            net.layer2[0].conv2, "weight", torch.ones(128, 128, 3, 3)
        ),
        lambda net: synchronize_batch_norms(net, torch.device("cpu")),
    ],
    ids=["compile", "weight_norm", "orthogonal", "prune", "synchronize"],
)
def test_what_changes_no_layer_leaves_the_plan_as_it_was(change):
    model = convert(network())
    before = copy.deepcopy(model.plan)
    change(model.backbone)
    assert model.plan == before


@pytest.mark.parametrize(
    "name", ["resnet20_cifar", "mobilenetv3_small_050", "vit_tiny_patch16_224"]
)
def test_layers_and_products_are_counted_again_as_they_were(name):
    size = 224 if name.startswith("vit") else 32
    net = timm.create_model(name, num_classes=5)
    model = dqnet.quantize(net, torch.zeros(1, 3, size, size), widths=(3,))
    before = model.plan
    model.backbone.added = nn.Identity()
    assert model.plan == before and model.plan is not before


def test_quantizers_and_random_numbers_are_left_as_they_were():
    model = convert(network(), widths=(3,), quantizer="lsq").train()
    before = copy.deepcopy(model.state_dict())
    model.backbone.reset_classifier(3)
    random = torch.get_rng_state()
    assert model.layers[-1].weights == 512 * 3
    assert model.training and all(m.training for m in model.modules())
    after = model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items() if ".fc." not in k)
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(q._count for q in model.modules() if hasattr(q, "_count"))


def test_costs_may_be_asked_for_the_first_time_before_a_backward_pass():
    model = convert(network()).train()
    no_pooling(model.backbone)
    logits, routing = model(torch.randn(2, 3, SIZE, SIZE))
    (logits.sum() + dqnet.bit_flops(model, routing).mean()).backward()
    assert model.controller.fc1.weight.grad.any()


# Refused


def fused(model):
    return reparameterize_model(model)


def without_a_block(model):
    model.backbone.stages[2][1] = nn.Identity()
    return model


def float_layers_in_their_place(model):
    for module in list(model.backbone.modules()):
        for name, child in module.named_children():
            if isinstance(child, QuantConv2d):
                own = child.in_channels, child.out_channels, child.kernel_size
                conv = nn.Conv2d(*own, child.stride, child.padding, bias=False)
                setattr(module, name, conv)
    return model


@pytest.mark.parametrize("change", [fused, without_a_block, float_layers_in_their_place])
def test_a_routed_layer_that_is_gone_is_refused(change):
    model = change(convert(network("repvgg_a0")))
    for ask in (lambda: model.layers, lambda: dqnet.static_bit_flops(model, 3)):
        with pytest.raises(UserError, match=r"changed .*: routed layer '.*' does not run") as error:
            ask()
        assert "\n" not in str(error.value)


def test_a_network_without_a_quantized_layer_is_refused():
    model = convert(network("repvgg_a0"), widths=(3,))
    with pytest.raises(UserError, match="no layer is quantized any more; change the float network"):
        fused(model).plan  # noqa: B018
    assert "static" in roles(model).values()  # fused is a copy


def test_a_second_routed_layer_is_refused():
    model = convert(network())
    first = model.backbone.layer2[0].conv2
    model.backbone.layer2[0].conv2 = nn.Sequential(first, copy.deepcopy(first))
    with pytest.raises(UserError, match="routed layers were added"):
        model.plan  # noqa: B018


def test_a_layer_of_unknown_cost_is_refused_by_name():
    model = convert(network(), widths=(3,))
    model.backbone.fc = nn.Bilinear(1, 1, 1)
    model.backbone.forward_head = lambda x: x
    with pytest.raises(UserError, match="'fc' is now a Bilinear, which is not counted"):
        model.plan  # noqa: B018


def test_a_network_that_does_not_run_any_more_is_refused():
    model = convert(network())
    model.backbone.fc = nn.Linear(3, 10)
    with pytest.raises(UserError, match=r"does not run on images \[3, 32, 32\]") as error:
        model.plan  # noqa: B018
    assert "\n" not in str(error.value)


def test_a_split_point_that_was_replaced_is_refused_when_the_network_runs():
    model = convert(network())
    model.backbone.layer1 = nn.Identity()
    with pytest.raises(UserError, match="split point does not precede it, or was replaced"):
        model(SAMPLE)


# Copies


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), lambda m: ModelEmaV3(m).module],
    ids=["deepcopy", "pickle", "average"],
)
def test_a_copy_is_watched_on_its_own(copied):
    model = convert(network())
    plan = model.plan
    clone = copied(model)
    assert clone.plan == plan
    clone.backbone.reset_classifier(3)
    assert clone.layers[-1].weights == 512 * 3
    assert model.plan is plan
