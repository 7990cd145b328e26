"""Fully connected layers at every position: vision transformers, mixers and ConvNeXt."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.mlp_mixer import MlpMixer
from torch import nn

import dqnet
from dqnet.controllers import build_controller
from dqnet.layers import QuantLinear

SMALL_VIT = {"img_size": 16, "patch_size": 4, "depth": 3, "embed_dim": 24, "num_heads": 3}
NETWORKS = {
    "vit_tiny_patch16_224": (16, SMALL_VIT),
    "deit_tiny_patch16_224": (16, SMALL_VIT),
    "mlp_mixer": (16, {"img_size": 16, "patch_size": 4, "num_blocks": 3, "embed_dim": 32}),
    "convnext_tiny": (64, {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}),
}


@pytest.fixture(scope="module", params=NETWORKS)
def family(request):
    size, kwargs = NETWORKS[request.param]
    torch.manual_seed(0)
    if request.param == "mlp_mixer":
        net = MlpMixer(num_classes=4, **kwargs)
    else:
        net = timm.create_model(request.param, num_classes=4, **kwargs)
    for module in net.modules():  # in a few steps of training a scale of 1e-6 shows nothing
        if getattr(module, "gamma", None) is not None:
            nn.init.ones_(module.gamma)
    linear = [n for n, m in net.named_modules() if isinstance(m, nn.Linear)]
    # Not DoReFa, to whose signed form a zero is halfway between two levels.
    model = dqnet.quantize(net, torch.zeros(1, 3, size, size), widths=(2, 4, 8), quantizer="lsq")
    dqnet.calibrate(model, [torch.randn(16, 3, size, size)])
    return request.param, linear, model, size


def test_layers_of_tokens_are_routed(family):
    _, linear, model, _ = family
    roles = {layer.name: layer.role for layer in model.layers}
    shared = [name for name in linear if name.startswith(f"{model.split_point}.")]
    assert shared and {roles[name] for name in shared} == {"static"}
    routed = [name for name in linear[:-1] if name not in shared]
    assert routed and {roles[name] for name in routed} == {"routed"}
    assert roles[linear[-1]] == "full"


def test_costs_are_counted_by_position(family):
    """MACs of every fully connected layer: weights × positions, from the shapes of a float pass."""
    _, linear, model, size = family
    positions = {}
    handles = [
        model.backbone.get_submodule(name).register_forward_hook(
            lambda m, args, y, name=name: positions.update({name: y[0].numel() // y.shape[-1]})
        )
        for name in linear
    ]
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, size, size))
    for handle in handles:
        handle.remove()
    for layer in model.layers:
        if layer.name in linear:
            weights = model.backbone.get_submodule(layer.name).weight.numel()
            assert (layer.weights, layer.macs) == (weights, weights * positions[layer.name])


def test_evaluation_does_not_depend_on_the_other_images(family):
    model, size = copy.deepcopy(family[2]).double(), family[3]
    images = torch.randn(6, 3, size, size, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        whole, half = model.eval()(images), model(images[:3])
    assert torch.equal(whole.routing[:3], half.routing)
    torch.testing.assert_close(whole.logits[:3], half.logits, rtol=1e-9, atol=1e-9)


def test_a_routed_pass_is_the_static_network_of_each_width(family):
    """All images at one width, against the same weights in plain torch operations."""
    _, _, model, size = family
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    for k in range(3):
        routing = F.one_hot(torch.full((3, len(model.routed_layers)), k), 3).float()
        seen = []

        def check(layer, args, y, k=k, seen=seen):
            gain = layer.affine.gains(layer.quantized_weights())[k]
            weight = layer.quantized_weights()[k] * gain[:, None]
            bias = layer.affine.shift[k] + (0 if layer.bias is None else layer.bias)
            expected = F.linear(layer.quantized_input(args[0], k), weight, bias)
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
            seen.append(layer)

        layers = [model.backbone.get_submodule(layer.name) for layer in model.routed_layers]
        handles = [m.register_forward_hook(check) for m in layers if isinstance(m, QuantLinear)]
        with torch.no_grad():
            model.eval()(images, routing=routing)
        for handle in handles:
            handle.remove()
        assert len(seen) == len(handles) > 0


def test_they_train(family):
    _, _, model, size = family
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(16, 3, size, size, generator=generator), torch.arange(16) % 4
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    torch.manual_seed(0)
    losses, target = [], dqnet.static_bit_flops(model, 4)
    for _ in range(30):
        logits, routing = model.train()(images)
        task = F.cross_entropy(logits, labels)
        (task + dqnet.bit_flops(model, routing).mean() / target).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(task.item())
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])


@pytest.mark.parametrize("pool", ["mean", "mean_std"])
def test_the_controller_pools_tokens_as_it_pools_positions(pool):
    config = dqnet.ControllerConfig(pool=pool)
    tokens = torch.randn(5, 12, 7)
    of_tokens = build_controller((12, 7), 3, 2, config).eval()
    of_maps = build_controller((7, 4, 3), 3, 2, config).eval()
    of_maps.load_state_dict(of_tokens.state_dict())
    maps = tokens.transpose(1, 2).reshape(5, 7, 4, 3)
    torch.testing.assert_close(of_tokens(tokens), of_maps(maps))
    assert of_tokens.macs() == of_maps.macs()


def test_windows_of_an_image_stay_at_one_width():
    """Swin folds windows into the batch: its attention has no row for each image."""
    net = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=64, window_size=4, depths=(1, 1, 2, 1),
        embed_dim=24, num_heads=(1, 2, 2, 4), num_classes=4,
    )  # fmt: skip
    model = dqnet.quantize(net, torch.zeros(1, 3, 64, 64), shared_until="patch_embed")
    roles = {layer.name: layer.role for layer in model.layers if layer.name != "head.fc"}
    for name, role in roles.items():
        # In the last two stages an image is one window.
        if name.endswith(("attn.qkv", "attn.proj")) and name.startswith(("layers.0", "layers.1")):
            assert role == "static", name
        elif ".mlp." in name or name.endswith(("attn.qkv", "attn.proj")):
            assert role == "routed", name
    assert model(torch.randn(2, 3, 64, 64)).logits.shape == (2, 4)
