"""The CIFAR ResNets against the paper and the published weights: numbers, names and shapes."""

import pytest
import timm
import torch
from torch import nn

from dqnet.models.resnet_cifar import SubsampleAndPad

# depth: trainable parameters, as printed by github.com/akamaster/pytorch_resnet_cifar10
PARAMETERS = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962}


def create(depth, **kwargs):
    return timm.create_model(f"resnet{depth}_cifar", **kwargs)


def weighted(model):
    return [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def published_shapes(blocks):
    """Every key of a published state dict and its shape, written out."""

    def batch_norm(name, channels):
        keys = ("weight", "bias", "running_mean", "running_var")
        return {f"{name}.{key}": (channels,) for key in keys} | {f"{name}.num_batches_tracked": ()}

    shapes = {"conv1.weight": (16, 3, 3, 3)} | batch_norm("bn1", 16)
    channels = 16
    for stage, out in (("layer1", 16), ("layer2", 32), ("layer3", 64)):
        for block in range(blocks):
            name = f"{stage}.{block}"
            shapes[f"{name}.conv1.weight"] = (out, channels, 3, 3)
            shapes[f"{name}.conv2.weight"] = (out, out, 3, 3)
            shapes |= batch_norm(f"{name}.bn1", out) | batch_norm(f"{name}.bn2", out)
            channels = out
    return shapes | {"linear.weight": (10, 64), "linear.bias": (10,)}


@pytest.mark.parametrize(("depth", "count"), PARAMETERS.items())
def test_parameter_count_is_the_published_one(depth, count):
    assert sum(p.numel() for p in create(depth).parameters()) == count


@pytest.mark.parametrize("depth", PARAMETERS)
def test_depth_counts_the_weighted_layers(depth):
    assert len(weighted(create(depth))) == depth


@pytest.mark.parametrize(("depth", "blocks"), [(20, 3), (56, 9)])
def test_state_dict_has_the_published_keys_and_shapes(depth, blocks):
    own = {key: tuple(value.shape) for key, value in create(depth).state_dict().items()}
    assert own == published_shapes(blocks)


def test_shortcut_takes_every_second_pixel_and_pads_channels_on_both_sides():
    x = torch.randn(2, 4, 6, 6)
    y = SubsampleAndPad(4)(x)
    expected = torch.zeros(2, 8, 3, 3)
    for i in range(3):
        for j in range(3):
            expected[:, 2:6, i, j] = x[:, :, 2 * i, 2 * j]
    torch.testing.assert_close(y, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["layer2.0", "layer3.0"])
def test_a_block_whose_branch_is_zero_passes_its_shortcut(name):
    block = create(20).get_submodule(name).eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.randn(1, block.conv1.in_channels, 8, 8)
    quarter = x.shape[1] // 2
    expected = torch.zeros(1, 2 * x.shape[1], 4, 4)
    expected[:, quarter : quarter + x.shape[1]] = x[:, :, ::2, ::2].relu()
    torch.testing.assert_close(block(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("stage", "shape"),
    [("layer1", (16, 32, 32)), ("layer2", (32, 16, 16)), ("layer3", (64, 8, 8))],
)
def test_stage_output_has_the_papers_shape(stage, shape):
    model, seen = create(20), []
    model.get_submodule(stage).register_forward_hook(lambda m, a, out: seen.append(out.shape[1:]))
    model(torch.randn(2, 3, 32, 32))
    assert seen == [shape]


@pytest.mark.parametrize(("classes", "channels"), [(100, 3), (7, 1)])
def test_timm_arguments_set_classes_and_image_channels(classes, channels):
    model = create(20, num_classes=classes, in_chans=channels)
    assert model(torch.randn(2, channels, 32, 32)).shape == (2, classes)


def test_logits_are_the_classifier_of_the_mean_over_pixels():
    model = create(20).eval()
    x = torch.randn(2, 3, 32, 32)
    features = model.forward_features(x).flatten(2).mean(2)
    expected = features @ model.linear.weight.T + model.linear.bias
    torch.testing.assert_close(model(x), expected)


def test_a_checkpoint_loads_through_timm(tmp_path):
    first = create(20)
    torch.save(first.state_dict(), tmp_path / "weights.pt")
    second = create(20, checkpoint_path=tmp_path / "weights.pt")
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name


def test_the_activation_can_be_chosen():
    model = create(20, act_layer="identity")
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())
    assert sum(isinstance(m, nn.ReLU) for m in create(20).modules()) == 19
    assert (model.eval().forward_features(torch.randn(2, 3, 8, 8)) < 0).any()
