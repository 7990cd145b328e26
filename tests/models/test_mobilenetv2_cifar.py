"""The CIFAR MobileNetV2 against torchvision's, with the strides of 32 × 32 images."""

import pytest
import timm
import torch
from torch import nn
from torchvision.models import mobilenet_v2

import dqnet

WIDTHS = {"mobilenetv2_050_cifar": 0.5, "mobilenetv2_100_cifar": 1.0}


def create(name="mobilenetv2_050_cifar", **kwargs):
    return timm.create_model(name, **kwargs)


@pytest.mark.parametrize(("name", "width"), WIDTHS.items())
def test_it_computes_what_torchvisions_does_with_two_strides_less(name, width):
    theirs = mobilenet_v2(num_classes=10, width_mult=width, dropout=0).eval()
    theirs.features[0][0].stride = (1, 1)
    theirs.features[2].conv[1][0].stride = (1, 1)
    ours = create(name).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_(1 if p.dim() == 1 else 0, 0.1)  # the initial scales would hide the norms
    values = theirs.state_dict().values()
    ours.load_state_dict(dict(zip(ours.state_dict(), values, strict=True)))
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_features_are_4_x_4_and_activations_relu6():
    model = create()
    assert model.forward_features(torch.randn(2, 3, 32, 32)).shape == (2, 1280, 4, 4)
    activations = [m for m in model.modules() if "ReLU" in type(m).__name__]
    assert activations
    assert all(isinstance(m, nn.ReLU6) for m in activations)


def test_reductions_are_those_of_the_features():
    features = create(features_only=True)
    outputs = features(torch.randn(1, 3, 32, 32))
    reductions, channels = features.feature_info.reduction(), features.feature_info.channels()
    assert [(32 // r, c) for r, c in zip(reductions, channels, strict=True)] == [
        (x.shape[-1], x.shape[1]) for x in outputs
    ]


@pytest.mark.parametrize(("classes", "channels"), [(100, 3), (7, 1)])
def test_timm_arguments_set_classes_and_image_channels(classes, channels):
    model = create(num_classes=classes, in_chans=channels)
    assert model(torch.randn(2, channels, 32, 32)).shape == (2, classes)


def test_a_converted_one_trains():
    torch.manual_seed(0)
    model = dqnet.quantize(create(), torch.zeros(1, 3, 32, 32), widths=(8,), quantizer="lsq")
    quantized = [m for m in model.modules() if isinstance(m, dqnet.layers.QuantConv2d)]
    assert any(m.groups > 1 for m in quantized)  # depthwise layers included
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 10
    losses = []
    for _ in range(8):
        loss = nn.functional.cross_entropy(model(images).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
