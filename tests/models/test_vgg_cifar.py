"""The CIFAR VGG-16 against torchvision's features."""

from itertools import pairwise

import pytest
import timm
import torch
from torch import nn
from torchvision.models import vgg16_bn

import dqnet


def create(**kwargs):
    return timm.create_model("vgg16_cifar", **kwargs)


@pytest.fixture(scope="module")
def float_model():
    torch.manual_seed(0)
    return create().eval()


def test_it_computes_torchvisions_features_without_the_last_pool(float_model):
    theirs = vgg16_bn(num_classes=10).features[:-1].eval()
    ours = float_model.stages
    assert [type(m) for m in theirs] == [type(m) for stage in ours for m in stage]
    # Norms of either have no bias of a convolution to undo: those of torchvision are set to zero.
    modules = theirs.named_modules()
    convolutions = {f"{name}.bias" for name, m in modules if isinstance(m, nn.Conv2d)}
    with torch.no_grad():
        for name in convolutions:
            theirs.get_parameter(name).zero_()
    values = [value for name, value in theirs.state_dict().items() if name not in convolutions]
    loaded = create().eval()
    loaded.stages.load_state_dict(dict(zip(ours.state_dict(), values, strict=True)))
    x = torch.randn(1, 3, 32, 32)
    features = theirs(x)
    torch.testing.assert_close(loaded.forward_features(x), features)
    expected = nn.functional.linear(features.mean((2, 3)), loaded.classifier.weight)
    torch.testing.assert_close(loaded(x), expected)


def test_it_has_the_known_number_of_parameters(float_model):
    widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    expected = sum(9 * a * b + 2 * b for a, b in pairwise(widths)) + 5130
    assert sum(p.numel() for p in float_model.parameters()) == expected == 14_724_042


@pytest.mark.parametrize("size", [16, 32])
def test_reductions_are_those_of_the_features(float_model, size):
    x = torch.randn(1, 3, size, size)
    for i, info in enumerate(float_model.feature_info):
        x = float_model.stages[i](x)
        side = size // info["reduction"]
        assert x.shape[1:] == (info["num_chs"], side, side)


def test_timm_arguments_set_classes_and_image_channels():
    model = create(num_classes=7, in_chans=1)
    assert model(torch.randn(2, 1, 16, 16)).shape == (2, 7)


def test_a_dynamic_one_routes_what_is_behind_its_first_stage():
    model = dqnet.quantize(create(), torch.zeros(1, 3, 16, 16), widths=(2, 8), quantizer="lsq")
    assert [layer.name for layer in model.layers if layer.role == "static"] == ["stages.0.3"]
    assert sum(layer.role == "routed" for layer in model.layers) == 11
    assert model.eval()(torch.randn(2, 3, 16, 16)).routing.shape == (2, 11, 2)
