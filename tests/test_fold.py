"""Folded batch norms: the same outputs, weights by the formula, and what must not be folded."""

import copy

import numpy as np
import pytest
import timm
import torch
import torchvision
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import nn
from torch.fx.experimental.optimization import fuse
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import prune

import dqnet
from dqnet.errors import UserError
from dqnet.fold import fold_batch_norms

MODELS = {
    "resnet20_cifar": lambda: timm.create_model("resnet20_cifar"),
    "mobilenetv2_050_cifar": lambda: timm.create_model("mobilenetv2_050_cifar"),
    "tf_efficientnet_lite0": lambda: timm.create_model("tf_efficientnet_lite0", num_classes=10),
    "torchvision_resnet18": lambda: torchvision.models.resnet18(num_classes=10),
}


def trained(model):
    """With statistics, scales and shifts as after a training, so that norms matter."""
    generator = torch.Generator().manual_seed(1)
    for norm in (m for m in model.modules() if isinstance(m, _BatchNorm)):
        for tensor, low, high in (
            (norm.weight, 0.5, 1.5),
            (norm.bias, -0.5, 0.5),
            (norm.running_mean, -0.2, 0.2),
            (norm.running_var, 0.2, 2.0),
        ):
            if tensor is not None:
                value = torch.rand(tensor.shape, generator=generator) * (high - low) + low
                tensor.data.copy_(value)
    return model.eval()


def images(size=32, count=3):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_folded_network_has_no_norm_and_computes_the_same(name):
    model = trained(MODELS[name]()).double()
    x = images().double()
    expected = model(x)
    assert fold_batch_norms(model, x[:1]) == {}
    assert not any(isinstance(m, _BatchNorm) for m in model.modules())
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9 * expected.abs().max())


@torch.no_grad()
def test_weights_are_those_of_the_published_formula_and_of_torch_fx():
    model = trained(torchvision.models.resnet18(num_classes=10))
    by_torch, before = fuse(copy.deepcopy(model)), copy.deepcopy(model)
    fold_batch_norms(model, images(count=1))
    theirs = dict(by_torch.named_parameters())
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-6)
    conv, bn = before.layer1[0].conv1, before.layer1[0].bn1
    gamma, beta, mean, var = (
        t.double().numpy() for t in (bn.weight, bn.bias, bn.running_mean, bn.running_var)
    )
    scale = gamma / np.sqrt(var + bn.eps)
    folded = model.layer1[0].conv1
    np.testing.assert_allclose(
        folded.weight.numpy(), conv.weight.double().numpy() * scale[:, None, None, None], rtol=1e-6
    )
    np.testing.assert_allclose(folded.bias.numpy(), beta - mean * scale, rtol=1e-5, atol=1e-7)


@torch.no_grad()
def test_activation_and_dropout_of_timms_norm_stay():
    norm = BatchNormAct2d(4, act_layer=nn.ReLU6, drop_layer=lambda: nn.Dropout(0.5))
    model = trained(nn.Sequential(Conv2dSame(3, 4, 3, 2), norm, nn.Flatten(), nn.LazyLinear(2)))
    model(images(7))
    x = images(7)
    expected = model(x)
    assert fold_batch_norms(model, x) == {}
    assert isinstance(model[1].act, nn.ReLU6)
    assert isinstance(model[1].drop, nn.Dropout)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_linear_layer_and_a_norm_without_affine():
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5, affine=False), nn.ReLU(), nn.Linear(5, 2)
    )
    model = trained(model).double()
    x = images(2).double()
    expected = model(x)
    assert fold_batch_norms(model, x) == {}
    assert isinstance(model[2], nn.Identity)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-12)


class Net(nn.Module):
    """Two convolutions and two norms, put together by ``way``."""

    def __init__(self, way, norm=nn.BatchNorm2d):
        super().__init__()
        self.way = way
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.n, self.m = norm(3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.way(self, x).mean((2, 3))


def added_twice(net, x):
    y = net.a(x)
    return net.m(net.b(net.n(y))) + y


def viewed(net, x):
    y = net.a(x)
    return net.m(net.b(net.n(y))) + y[:, :1]


@pytest.mark.parametrize(
    ("way", "reasons"),
    [
        (
            lambda net, x: net.m(net.n(net.a(x)) + net.n(net.b(x))),
            {
                "n": "is shared by 'a' and 'b'",
                "m": "follows no layer, not a Conv2d or Linear",
            },
        ),
        (
            lambda net, x: net.m(net.b(net.n(net.a(net.a(x))))),
            {"n": "follows layer 'a', which runs 2 times"},
        ),
        (added_twice, {"n": "follows layer 'a', whose output goes into aten.add as well"}),
        (viewed, {"n": "follows layer 'a', whose output goes into aten.slice as well"}),
        (
            lambda net, x: net.m(net.b(net.n(net.a(x).relu_()))),
            {"n": "follows no layer, not a Conv2d or Linear"},
        ),
        (
            lambda net, x: net.m(net.b(net.n(x))),  # before a layer, as in pre-activation ResNets
            {"n": "follows no layer, not a Conv2d or Linear"},
        ),
        (lambda net, x: net.m(net.b(x)), {"n": "does not run"}),
    ],
)
@torch.no_grad()
def test_what_cannot_be_folded_is_left_and_says_why(way, reasons):
    model = trained(Net(way)).double()
    x = images(6).double()
    expected = model(x)
    assert fold_batch_norms(model, x) == reasons
    assert isinstance(model.n, nn.BatchNorm2d)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-12)


def test_other_kinds_of_layers_and_norms_are_left():
    def way(net, x):
        return net.m(net.b(net.n(net.a(x))))

    class Doubled(nn.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    model = Net(way, Doubled).eval()
    model.b = nn.ConvTranspose2d(3, 3, 3)
    assert fold_batch_norms(model, images(6)) == {
        "n": "is a Doubled, which may do more than normalise",
        "m": "follows ConvTranspose2d, not a Conv2d or Linear",
    }
    model = Net(way, lambda c: nn.BatchNorm2d(c, track_running_stats=False)).eval()
    prune.identity(model.b, "weight")
    assert fold_batch_norms(model, images(6)) == {
        "n": "has no running statistics",
        "m": "follows layer 'b', which computes its weight",
    }


def test_a_fold_that_changes_the_network_is_refused():
    model = trained(Net(lambda net, x: net.m(net.b(net.n(net.a(x))))))
    # What a hook does to the output of a norm goes when the norm goes.
    model.n.register_forward_hook(lambda module, args, output: 3 * output)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=r"changes what the network computes .* left as it was$"):
        fold_batch_norms(model, images(6))
    assert isinstance(model.n, nn.BatchNorm2d)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@torch.no_grad()
def test_modes_and_what_needs_gradients_stay():
    model = trained(Net(lambda net, x: net.m(net.b(net.n(net.a(x)))))).train()
    model.a.requires_grad_(False)
    fold_batch_norms(model, images(6))
    assert model.training
    assert not model.a.weight.requires_grad
    assert model.b.weight.requires_grad
    assert model.b.bias.requires_grad


def test_a_folded_network_converts():
    model = trained(MODELS["mobilenetv2_050_cifar"]())
    fold_batch_norms(model, images(count=1))
    converted = dqnet.quantize(model, images(count=1), widths=(8,), quantizer="lsq")
    assert converted(images()).logits.isfinite().all()
