"""Cross-layer equalization: the same function, equal ranges, weights that one scale can hold."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dqnet.errors import UserError
from dqnet.fold import fold_batch_norms
from dqnet.layers.channel_clamp import ChannelClamp
from dqnet.post_training import equalize

MODELS = {
    "resnet20_cifar": lambda: timm.create_model("resnet20_cifar"),
    "mobilenetv2_050_cifar": lambda: timm.create_model("mobilenetv2_050_cifar"),
    "tf_efficientnet_lite0": lambda: timm.create_model("tf_efficientnet_lite0", num_classes=10),
    "torchvision_resnet18": lambda: torchvision.models.resnet18(num_classes=10),
}


def images(size=32, count=3):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def folded(model):
    """With scales and shifts as after a training, and statistics that fit them."""
    generator = torch.Generator().manual_seed(1)
    for norm in (m for m in model.modules() if isinstance(m, _BatchNorm)):
        norm.weight.copy_(torch.rand(norm.weight.shape, generator=generator) * 2 + 0.1)
        norm.bias.copy_(0.3 * torch.randn(norm.bias.shape, generator=generator))
        norm.momentum = 1.0
    model.train()(images(64, 8))
    fold_batch_norms(model.eval(), images(count=1))
    return model


def range_of_outputs(layer):
    return layer.weight.detach().abs().flatten(1).amax(1)


def range_of_inputs(layer):
    """Channel by channel, by what a convolution of one channel alone would multiply."""
    groups = getattr(layer, "groups", 1)
    weight, outputs = layer.weight.detach(), len(layer.weight) // groups
    ranges = []
    for i in range(weight.shape[1] * groups):
        group, column = divmod(i, weight.shape[1])
        ranges.append(weight[group * outputs : (group + 1) * outputs, column].abs().max())
    return torch.stack(ranges)


@pytest.mark.parametrize(
    ("name", "pairs"),
    # The two convolutions of every basic block; of 16 (15) inverted residuals three each, of the
    # separable block two and the stem. A block's output goes into one layer alone where its stage
    # and the next have no shortcut there: after the stages of 16 and of 320 channels.
    [("resnet20_cifar", 9), ("torchvision_resnet18", 8),
     ("mobilenetv2_050_cifar", 2 * 16 + 2 + 2), ("tf_efficientnet_lite0", 2 * 15 + 2 + 2)],
)  # fmt: skip
@torch.no_grad()
def test_the_function_stays_and_ranges_become_equal(name, pairs):
    torch.manual_seed(0)
    model, x = folded(MODELS[name]()).double(), images().double()
    expected = model(x)
    found = equalize(model, x)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5 * expected.abs().max())
    assert len(found) == pairs
    for pair in found:
        first, second = model.get_submodule(pair.first), model.get_submodule(pair.second)
        torch.testing.assert_close(
            range_of_outputs(first), range_of_inputs(second), rtol=1e-3, atol=0
        )


@torch.no_grad()
def test_one_pair_has_the_ranges_of_the_papers_equation():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.1), nn.Conv2d(4, 6, 3, groups=2), nn.Flatten()
    ).double()
    r1, r2 = range_of_outputs(model[0]), range_of_inputs(model[2])
    w1, b1 = model[0].weight.clone(), model[0].bias.clone()
    s = (r1 * r2).sqrt() / r2
    equalize(model, images(6).double())
    torch.testing.assert_close(model[0].weight, w1 / s.view(-1, 1, 1, 1), rtol=1e-9, atol=0)
    torch.testing.assert_close(model[0].bias, b1 / s, rtol=1e-9, atol=0)
    torch.testing.assert_close(range_of_inputs(model[2]), (r1 * r2).sqrt(), rtol=1e-9, atol=0)


def per_tensor(model, bits=8):
    """With weights of one symmetric scale each."""
    model = copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            step = layer.weight.detach().abs().max() / (2 ** (bits - 1) - 1)
            layer.weight.data.div_(step).round_().mul_(step)
    return model


@torch.no_grad()
def test_a_badly_scaled_network_becomes_as_good_as_the_well_scaled_one():
    torch.manual_seed(0)
    x = images(12, 200)
    good = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16), nn.ReLU(),
        nn.Conv2d(16, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip
    logits = good(x)  # untrained, they hardly differ from image to image
    good[-1].weight /= logits.std(0).view(-1, 1)
    good[-1].bias.copy_((good[-1].bias - logits.mean(0)) / logits.std(0))
    bad = copy.deepcopy(good)
    s = 10 ** torch.linspace(-3, 3, 16)
    bad[0].weight *= s.view(-1, 1, 1, 1)
    bad[0].bias *= s
    bad[2].weight /= s.view(-1, 1, 1, 1)
    expected = good(x)
    torch.testing.assert_close(bad(x), expected, rtol=1e-4, atol=1e-5)

    def agreement(model):
        return (per_tensor(model)(x).argmax(1) == expected.argmax(1)).float().mean().item()

    assert agreement(bad) < 0.5
    equalize(bad, x[:1])
    assert agreement(bad) >= agreement(good) - 0.02 > 0.8


@torch.no_grad()
def test_limits_of_relu6_follow_the_channels():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Conv2d(4, 2, 3), nn.Hardtanh(-0.5, 2),
        nn.Conv2d(2, 2, 1), nn.Flatten(),
    ).double()  # fmt: skip
    model[0].weight *= 50  # so that limits are reached
    x, before = images(8).double(), range_of_outputs(model[0])
    expected = model(x)
    equalize(model, x)
    assert isinstance(model[1], ChannelClamp)
    scale = before / range_of_outputs(model[0])
    torch.testing.assert_close(model[1].high, 6 / scale)
    assert torch.equal(model[1].low, torch.zeros(4).double())
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_channels_without_weights_stay():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten())
    model[0].weight[1] = 0
    model[2].weight[:, 2] = 0
    kept, bias = model[0].weight[2].clone(), model[0].bias[1].clone()
    expected = model(images(8))
    equalize(model, images(8))
    assert torch.equal(model[0].bias[1], bias)
    assert torch.equal(model[0].weight[2], kept)
    torch.testing.assert_close(model(images(8)), expected, rtol=1e-5, atol=1e-6)


class Net(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.way = way
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.relu, self.relu6 = nn.ReLU(), nn.ReLU6()
        self.norm, self.linear = nn.BatchNorm2d(3), nn.Linear(8, 8)

    def forward(self, x):
        return self.way(self, x).mean((2, 3))


def read_twice(net, x):
    y = net.relu(net.a(x))
    return net.b(y) + y


@pytest.mark.parametrize(
    "way",
    [
        read_twice,
        lambda net, x: net.b(net.norm(net.a(x))),
        lambda net, x: net.b(torch.sigmoid(net.a(x))),
        lambda net, x: net.b(F.relu6(net.a(x))),  # no module that could be replaced
        lambda net, x: net.relu6(net.b(net.relu6(net.a(x)))),
        lambda net, x: net.a(net.relu(net.a(x))),
        lambda net, x: net.linear(net.a(x)),  # another axis
        lambda net, x: net.b(net.a(x) + 1),
    ],
)
def test_other_pairs_are_left(way):
    net = Net(way).eval()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(UserError, match=r"^nothing to equalize: .*fold batch norms first"):
        equalize(net, images(8))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    "way",
    [
        lambda net, x: net.b(F.relu(net.a(x))),
        lambda net, x: net.b(net.relu(net.a(net.relu(x)))),  # one module of several activations
        lambda net, x: net.b(F.dropout(net.a(x), 0.5, net.training)),
    ],
)
@torch.no_grad()
def test_functions_and_what_does_nothing_may_stand_between(way):
    net = Net(way).eval()
    expected = net(images(8))
    assert len(equalize(net, images(8))) == 1
    torch.testing.assert_close(net(images(8)), expected, rtol=1e-5, atol=1e-6)


def test_weights_that_are_not_finite_are_refused():
    net = Net(lambda net, x: net.b(net.relu(net.a(x)))).eval()
    net.b.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="the weight of 'b' has values that are not finite"):
        equalize(net, images(8))
