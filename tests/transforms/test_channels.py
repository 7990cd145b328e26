"""A network with fewer channels, of which only the counts are known."""

import copy

import pytest
import timm
import tiny  # noqa: F401  registers resnet8_cifar
import torch
from torch import nn

import dqnet
from dqnet.errors import UserError
from dqnet.training.build import build_model

IMAGE = torch.zeros(1, 1, 8, 8)


def network():
    torch.manual_seed(0)
    return timm.create_model("resnet8_cifar", in_chans=1)


def shaped(model, counts):
    table = [{"name": "channels", "counts": counts}]
    return dqnet.transforms.apply(model, IMAGE, table, trained=False)


def test_the_named_layers_and_what_reads_them_are_smaller():
    before, model = network().state_dict(), shaped(network(), {"layer2.0.conv1": 5})
    after = model.state_dict()
    expected = {
        "layer2.0.conv1.weight": (5, 16, 3, 3), "layer2.0.conv2.weight": (32, 5, 3, 3),
    }  # fmt: skip
    kinds = "weight", "bias", "running_mean", "running_var"
    expected |= {f"layer2.0.bn1.{kind}": (5,) for kind in kinds}
    assert {n: tuple(v.shape) for n, v in after.items() if v.shape != before[n].shape} == expected
    assert model(IMAGE).shape == (1, 10)
    assert dqnet.quantize(model, IMAGE, widths=(2, 4), quantizer="lsq")(IMAGE).logits.shape == (
        1,
        10,
    )


def test_depthwise_layers_and_flattened_pixels_follow():
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 12, 3, padding=1, groups=6, bias=False),
        nn.BatchNorm2d(12), nn.Flatten(), nn.Linear(768, 7), nn.ReLU(), nn.Linear(7, 10),
    )  # fmt: skip
    model.requires_grad_(False)
    shaped(model, {"0": 4, "4": 3})
    assert (model[1].in_channels, model[1].out_channels, model[1].groups) == (4, 8, 4)
    assert (model[4].in_features, model[4].out_features, model[6].in_features) == (512, 3, 3)
    assert model(IMAGE).shape == (1, 10) and not model[0].weight.requires_grad


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"conv9": 3}, "unknown layer of channels 'conv9'; did you mean 'conv1'"),
        ({"conv1": 17}, "layer 'conv1' has 16 output channels, and cannot have 17"),
        ({"conv1": 0}, "cannot have 0"),
        ({"conv1": 2.5}, "cannot have 2.5"),
        ({"conv1": 7}, "channels: these counts do not fit each other: "),  # it is added to others
        ({}, r"counts \{\} of channels is not a table"),
        ([3], r"counts \[3\] of channels is not a table"),
    ],
)
def test_what_is_wrong_is_said_and_the_model_stays(counts, said):
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=said):
        shaped(model, counts)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_depthwise_layer_has_as_many_as_its_input():
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Conv2d(6, 6, 3, groups=6), nn.Flatten())
    with pytest.raises(UserError, match=r"depthwise layer '1' has as many .* input, 6, not 4"):
        shaped(model, {"1": 4})


def test_it_is_no_way_to_prune(config, tmp_path):
    torch.save(network().state_dict(), tmp_path / "whole.pt")
    table = "model.transforms=[{name: channels, counts: {layer1.0.conv1: 3}}]"
    chosen = config("quant=none", table, f"model.checkpoint_path={tmp_path / 'whole.pt'}")
    with pytest.raises(UserError, match="start without weights of the plain network"):
        build_model(chosen.model, chosen.quant, 10, (1, 8, 8))


def test_it_trains_from_scratch(run):
    done = run("quant=none", "model.transforms=[{name: channels, counts: {layer1.0.conv1: 3}}]")
    assert done.checkpoint()["model"]["layer1.0.conv2.weight"].shape == (16, 3, 3, 3)
