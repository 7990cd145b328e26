"""G-Ghost stages written out, what they cost, and in a quantized network."""

from pathlib import Path

import pytest
import timm
import torch
from hydra import compose, initialize_config_dir
from torch import nn

import dqnet
from dqnet.cli import to_object
from dqnet.config import TrainConfig
from dqnet.errors import UserError
from dqnet.trace import trace_model
from dqnet.training.build import create_float_model

CONF = Path(__file__).resolve().parents[2] / "conf"


def create(depth=20, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(f"g_ghost_resnet{depth}_cifar", num_classes=5, **kwargs)


def images(count=4, size=16):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize(("ghosts", "own"), [(0.5, 16), (0.25, 24)])
def test_a_stage_is_what_the_paper_says(ghosts, own):
    stage = create(56, ghosts=ghosts).layer2.eval()
    for norm in (m for m in stage.modules() if isinstance(m, nn.BatchNorm2d)):
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            nn.init.normal_(tensor)

    def normalised(y, norm):
        y = (y - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
        return y * norm.weight + norm.bias

    x = torch.randn(2, 16, 8, 8)
    features = [stage.blocks[0](x)]
    part = features[0][:, :own]
    for block in stage.blocks[1:8]:
        part = block(part)
        features.append(part)
    pooled = torch.cat([y.mean((2, 3)) for y in features], 1)
    first, norm1, second, norm2 = (stage.mix[i] for i in (1, 2, 4, 5))
    mixed = normalised(pooled @ first.weight[:, :, 0, 0].T, norm1).clamp(min=0)
    mixed = normalised(mixed @ second.weight[:, :, 0, 0].T, norm2)
    cheap = torch.einsum("oi,nihw->nhwo", stage.cheap.weight[:, :, 0, 0], features[0][:, own:])
    ghosts = (normalised(cheap, stage.cheap_norm) + mixed[:, None, None]).clamp(min=0)
    expected = stage.blocks[8](torch.cat((part, ghosts.movedim(-1, 1)), 1))
    torch.testing.assert_close(stage(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("depth", "inner"), [(20, 1), (56, 7)])
def test_costs(depth, inner):
    """Two blocks of the full width, others of half the channels, and the cheap operations."""
    trace = trace_model(create(depth), images(1, 32))
    by_hand = 32 * 32 * 16 * 27 + 64 * 5
    for channels, size, inputs in ((16, 32, 16), (32, 16, 16), (64, 8, 32)):
        half, pixels = channels // 2, size * size
        by_hand += 9 * pixels * (inputs * channels + 3 * channels**2 + 2 * inner * half**2)
        by_hand += pixels * half**2 + (channels + inner * half) * half + half**2
    assert sum(layer.macs for layer in trace.layers.values()) == by_hand


@pytest.mark.parametrize("ghosts", [0, 1, 0.01])
def test_a_share_that_leaves_nothing_is_refused(ghosts):
    with pytest.raises(UserError, match="is a share between 0 and 1"):
        create(ghosts=ghosts)


def test_a_configuration_names_it():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = to_object(
            TrainConfig,
            compose("train", ["model=g_ghost_resnet20_cifar", "+model.args.ghosts=0.25"]),
        )
    assert create_float_model(config.model, 10, 1).layer3.own == 48


@pytest.mark.parametrize("form", ["exact", "integer"])
@torch.no_grad()
def test_quantized_and_exported_it_answers_as_the_simulated_network(form, tmp_path):
    model = dqnet.quantize(
        create(), images(1), widths=[2, 4], quantizer="lsq", first_last=8, residual=8
    )
    roles = {layer.name: layer.role for layer in model.plan.layers}
    assert roles["layer1.cheap"] == "static"
    assert roles["layer2.cheap"] == roles["layer3.blocks.1.conv1"] == "routed"
    dqnet.calibrate(model, [images()])
    expected = model.eval()(images()).logits
    dqnet.export_onnx(model, tmp_path / "model.onnx", form)
    found = dqnet.load_exported(tmp_path / "model.onnx")(images()).logits
    close = 1e-5 if form == "exact" else 0.1  # in integers biases are rounded, and means
    assert (found - expected).abs().max() <= close * expected.abs().max()
