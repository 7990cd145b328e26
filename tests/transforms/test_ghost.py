"""Ghost modules: the paper's equations, where they go, what they cost, and with quantization."""

import math

import pytest
import timm
import tiny  # registers resnet8_cifar
import torch
from torch import nn

import dqnet
from dqnet.errors import UserError
from dqnet.trace import trace_model
from dqnet.transforms.ghost import GhostConv2d

assert tiny


def ghosted(name="resnet8_cifar", size=16, **options):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5)
    return dqnet.transforms.apply(
        model, torch.zeros(1, 3, size, size), [{"name": "ghost", **options}]
    )


def images(count=4, size=16):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("ratio", [2, 3, 5])
def test_features_are_those_of_the_equations(ratio):
    """Channel by channel: y'_i, then Φ(y'_i) for each of its ghosts, cut to 16 channels."""
    ghost = ghosted(ratio=ratio).layer2[0].conv2.eval()
    channels = math.ceil(32 / ratio)
    for norm in (ghost.primary_norm, ghost.cheap_norm):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.weight)
    x = torch.randn(2, 32, 6, 6)

    def normalised(y, norm, i):
        y = (y - norm.running_mean[i]) / (norm.running_var[i] + norm.eps).sqrt()
        return y * norm.weight[i] + norm.bias[i]

    kernels = ghost.primary.weight
    own = [
        normalised(torch.conv2d(x, kernels[i : i + 1], padding=1), ghost.primary_norm, i)
        for i in range(channels)
    ]
    cheap = []
    for i in range(channels):
        for j in range(i * (ratio - 1), (i + 1) * (ratio - 1)):
            y = torch.conv2d(own[i], ghost.cheap.weight[j : j + 1], padding=1)
            cheap.append(normalised(y, ghost.cheap_norm, j))
    expected = torch.cat([*own, *cheap], 1)[:, :32]
    torch.testing.assert_close(ghost(x), expected)


def test_filters_and_norms_of_intrinsic_features_are_the_networks_own():
    torch.manual_seed(0)
    plain = timm.create_model("resnet8_cifar", num_classes=5)
    nn.init.normal_(plain.layer1[0].bn1.bias)
    weight, bias = plain.layer1[0].conv1.weight.clone(), plain.layer1[0].bn1.bias.clone()
    dqnet.transforms.apply(plain, images(), [{"name": "ghost"}])
    ghost = plain.layer1[0].conv1
    assert torch.equal(ghost.primary.weight, weight[:8])
    assert torch.equal(ghost.primary_norm.bias, bias[:8])
    assert torch.equal(ghost.cheap_norm.bias, bias[8:])


def modules(model):
    return {name for name, module in model.named_modules() if isinstance(module, GhostConv2d)}


def test_where_they_go():
    """Neither the first layer, nor a shortcut of 1 × 1, nor squeeze-and-excite, nor depthwise."""
    inner = {f"layer{i}.0.conv{j}" for i in (1, 2, 3) for j in (1, 2)}
    assert modules(ghosted()) == inner
    found = modules(ghosted("resnet18", 32))
    assert found == {f"layer{i}.{j}.conv{k}" for i in (1, 2, 3, 4) for j in (0, 1) for k in (1, 2)}
    found = modules(ghosted("mobilenetv3_small_050", 32))
    assert found
    assert not any("se" in name or "conv_dw" in name for name in found)
    assert modules(ghosted("resnet18", 32, layers=["*.downsample.0"])) == {
        f"layer{i}.0.downsample.0" for i in (2, 3, 4)
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": ["layer9.*"]}, "unknown layer of ghost 'layer9"),
        ({"ratio": 1}, "ratio 1 of ghost must be a whole number from 2"),
        ({"ratio": 2.5}, "ratio 2.5 of ghost must be"),
        ({"kernel": 4}, "kernel 4 of ghost must be odd"),
    ],
)
def test_what_is_wrong_is_said(options, said):
    with pytest.raises(UserError, match=said):
        ghosted(**options)


def test_a_network_without_plain_convolutions_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8))
    with pytest.raises(UserError, match="ghost finds no plain convolution to replace"):
        dqnet.transforms.apply(model, images(), [{"name": "ghost"}])


def test_costs_are_those_of_the_paper():
    """Ghost-ResNet-56 of table 6: 0.43 M weights, and half the 125 M multiply-accumulates."""
    model = ghosted("resnet56_cifar", 32)
    macs = sum(layer.macs for layer in trace_model(model, images(1, 32)).layers.values())
    by_hand = 32 * 32 * 16 * 27 + 64 * 5  # first layer and classifier
    for channels, size, inputs in ((16, 32, 16), (32, 16, 16), (64, 8, 32)):
        half, pixels = channels // 2, size * size
        convs = [inputs, *[channels] * 17]
        by_hand += sum(half * 9 * pixels * (own + 1) for own in convs)
    assert macs == by_hand
    assert macs == pytest.approx(63e6, rel=0.05)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(0.43e6, rel=0.02)


@torch.no_grad()
@pytest.mark.parametrize("bits", ["w8a8", 4])
def test_with_static_quantization_both_convolutions_are_layers(bits):
    model = dqnet.quantize(
        ghosted(), images(1), widths=[bits], quantizer="lsq", first_last=8, residual=8,
        fold_batch_norm="corrected",
    )  # fmt: skip
    roles = {layer.name: layer.role for layer in model.plan.layers}
    assert roles["layer1.0.conv1.primary"] == roles["layer1.0.conv1.cheap"] == "static"
    assert model.value_quantizers.keys() >= {"layer1.0.conv1.primary_norm", "layer1.0.conv2"}
    dqnet.calibrate(model, [images()])
    quantized = model.eval()(images()).logits
    with model.unquantized():
        assert (quantized - model(images()).logits).abs().max() > 0
    assert quantized.isfinite().all()


def test_with_widths_per_image_both_convolutions_are_routed():
    model = dqnet.quantize(ghosted(), images(1), widths=[2, 4], shared_until="layer1")
    routed = [layer.name for layer in model.plan.routed]
    assert routed[:2] == ["layer2.0.conv1.primary", "layer2.0.conv1.cheap"]
    logits, routing = model(images())
    assert routing.shape == (4, 8, 2)
    assert dqnet.bit_flops(model, routing).shape == (4,)
    logits.sum().backward()


@pytest.mark.parametrize("form", ["exact", "integer"])
@pytest.mark.parametrize("ratio", [2, 3])
@torch.no_grad()
def test_exported_it_answers_as_the_simulated_network(ratio, form, tmp_path):
    model = dqnet.quantize(
        ghosted(ratio=ratio), images(1), widths=[8], quantizer="lsq", first_last=8, residual=8
    )
    dqnet.calibrate(model, [images()])
    expected = model.eval()(images()).logits
    dqnet.export_onnx(model, tmp_path / "model.onnx", form)
    found = dqnet.load_exported(tmp_path / "model.onnx")(images()).logits
    close = 1e-5 if form == "exact" else 0.1  # in integers biases are rounded, and means
    assert (found - expected).abs().max() <= close * expected.abs().max()


@torch.no_grad()
def test_timms_own_ghostnet_is_quantized():
    torch.manual_seed(0)
    model = timm.create_model("ghostnet_100", num_classes=5)
    x = images(2, 32)
    model = dqnet.quantize(model, x[:1], widths=["w8a8"], quantizer="affine")
    dqnet.calibrate(model, [x])
    quantized = model.eval()(x).logits
    with model.unquantized():
        expected = model(x).logits
    assert 0 < (quantized - expected).abs().max() < 0.2 * expected.abs().max()
