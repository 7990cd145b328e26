"""PalQuant: G networks side by side, what connects them, what they cost, and with quantization."""

import pytest
import timm
import tiny  # registers resnet8_cifar
import torch
from timm.layers import StdConv2d
from torch import nn

import dqnet
from dqnet.costs import find_cost
from dqnet.errors import UserError

assert tiny


def parallel(name="resnet8_cifar", size=16, trained=False, **options):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5)
    table = {"name": "parallel_groups", "groups": 2, **options}
    return dqnet.transforms.apply(model, torch.zeros(1, 3, size, size), [table], trained)


def images(count=4, size=16):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def varied(model):
    """Norms as after a training, so that they matter."""
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            nn.init.normal_(tensor)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize(("name", "groups"), [("resnet8_cifar", 3), ("resnet18", 2)])
def test_without_shuffles_it_is_so_many_networks_whose_logits_are_summed(name, groups):
    """A plain network holds each group's own part of every tensor; the classifier's bias is one."""
    wide = varied(parallel(name, 32, groups=groups, shuffle_after=[]))
    x, total = images(2, 32), 0
    for g in range(groups):
        alone = timm.create_model(name, num_classes=5).eval()
        state = wide.state_dict()
        for key, own in alone.state_dict().items():
            axis = 1 if key in ("linear.weight", "fc.weight") else 0
            whole = state[key]
            if whole.shape != own.shape:
                state[key] = whole.chunk(groups, axis)[g]
        alone.load_state_dict(state)
        total = total + alone(x)
    bias = (groups - 1) * wide.get_classifier().bias
    torch.testing.assert_close(wide(x), total - bias, rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_a_shuffle_adds_what_the_neighbour_says():
    model = varied(parallel(groups=4))
    shuffle = model.layer1.shuffle
    x = torch.randn(2, 64, 5, 5)
    parts = x.chunk(4, 1)
    weights, norm = shuffle.conv.weight.chunk(4, 0), shuffle.norm
    heard = [torch.conv2d(parts[(g + 1) % 4], weights[g]) for g in range(4)]
    y = torch.cat(heard, 1).movedim(1, -1)
    y = (y - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(shuffle(x), x + y.clamp(min=0).movedim(-1, 1))


def test_every_stage_but_the_last_is_followed_by_one():
    names = [k for k in dict(parallel("resnet18", 32).named_modules()) if k.endswith("shuffle")]
    assert names == ["layer1.shuffle", "layer2.shuffle", "layer3.shuffle"]
    named = parallel(shuffle_after=["layer2.0", "act1"])
    assert isinstance(named.act1, nn.Sequential)
    assert named.act1.shuffle.conv.groups == named.layer2[0].shuffle.conv.groups == 2


def test_weights_are_as_spread_as_those_of_a_network_from_scratch():
    """Kaiming's: 2 / inputs, for the classifier too, which has G times as many."""
    model = parallel("resnet20_cifar", groups=4)
    for layer, inputs in ((model.conv1, 27), (model.layer3[2].conv1, 576), (model.linear, 256)):
        expected = (2 / inputs) ** 0.5
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.15)
    first, second = model.layer1[0].conv1.weight.chunk(4)[:2]
    assert not torch.equal(first, second)


def costs(bits, groups=None):
    torch.manual_seed(0)
    model = timm.create_model("resnet20_cifar")
    if groups:
        options = {"name": "parallel_groups", "groups": groups, "shuffle_after": []}
        dqnet.transforms.apply(model, images(1), [options], trained=False)
    plan = dqnet.quantize(model, images(1), widths=[bits]).plan
    layers = [layer for layer in plan.layers if layer.role != "full"]
    price = [find_cost(by) for by in ("bit_flops", "size")]
    return [sum(own.layer(layer, layer.precisions[0]) for layer in layers) for own in price]


def test_four_groups_cost_and_two_weigh_what_one_network_of_twice_the_bits_does():
    flops, size = costs(4)
    assert costs(2, groups=4)[0] == flops
    assert costs(2, groups=2)[1] == size


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"groups": 1}, "groups 1 of parallel_groups must be a whole number from 2"),
        ({"groups": True}, "groups True of parallel_groups must be"),
        ({"trained": True}, "transform 'parallel_groups' is for training from scratch: start"),
        ({"shuffle_after": ["layer9"]}, "unknown module with feature maps 'layer9'"),
        ({"name": "densenet121", "size": 32}, "networks that concatenate no features"),
        ({"widen": False}, "'layer2.0.shortcut' adds channels, which cannot be divided"),
    ],
)
def test_what_is_wrong_is_said(how, said):
    with pytest.raises(UserError, match=said):
        parallel(**how)


class Odd(nn.Module):
    """A network with 5 channels."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 5, 3)
        self.fc = nn.Linear(5, 2)

    def forward(self, x):
        return self.fc(self.conv2(self.conv1(x)).mean((2, 3)))


def test_a_network_that_lists_no_stages_is_told_to_name_modules():
    with pytest.raises(UserError, match="does not list its stages: name the modules"):
        dqnet.transforms.apply(Odd(), images(), [{"name": "parallel_groups", "groups": 2}], False)


def test_convolutions_that_are_more_than_that_are_refused():
    model = Odd()
    model.conv2 = StdConv2d(5, 5, 3)
    with pytest.raises(UserError, match="'conv2' is a StdConv2d, which parallel_groups has no"):
        dqnet.transforms.apply(model, images(), [{"name": "parallel_groups", "groups": 2}], False)


def test_an_odd_number_of_channels_is_not_divided():
    divided = {"name": "parallel_groups", "groups": 2, "widen": False, "shuffle_after": []}
    model = Odd()
    with pytest.raises(UserError, match="'conv2' has 5 channels, which cannot be divided among 2"):
        dqnet.transforms.apply(model, images(), [divided], trained=False)
    assert model.conv1.out_channels == 5
    dqnet.transforms.apply(model, images(), [divided | {"widen": True}], trained=False)
    assert model.conv2.weight.shape == (10, 5, 3, 3)


def test_divided_it_costs_less():
    model = parallel("resnet18", 32, widen=False)
    assert model.layer1[0].conv1.weight.shape == (64, 32, 3, 3)
    assert model.fc.in_features == 512


@pytest.mark.parametrize("form", ["exact", "integer"])
@torch.no_grad()
def test_quantized_and_exported_it_answers_as_the_simulated_network(form, tmp_path):
    model = dqnet.quantize(
        parallel(), images(1), widths=[2], quantizer="lsq", first_last=8, residual=8
    )
    assert model.backbone.layer1.shuffle.conv.precisions[0].weight.bits == 2
    dqnet.calibrate(model, [images()])
    expected = model.eval()(images()).logits
    dqnet.export_onnx(model, tmp_path / "model.onnx", form)
    found = dqnet.load_exported(tmp_path / "model.onnx")(images()).logits
    close = 1e-5 if form == "exact" else 0.1  # in integers biases are rounded, and means
    assert (found - expected).abs().max() <= close * expected.abs().max()


def test_widths_per_image():
    model = dqnet.quantize(parallel(), images(1), widths=[2, 4], shared_until="layer1")
    logits, routing = model(images())
    assert routing.shape == (4, 5, 2)  # four convolutions, and the second shuffle
    logits.sum().backward()
