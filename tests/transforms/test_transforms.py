"""Transforms by name, in order, and checkpoints of what is before and after each of them."""

import copy
import json

import pytest
import timm
import tiny  # registers resnet8_cifar
import torch
from torch import nn

import dqnet
from dqnet.errors import UserError
from dqnet.training.build import build_model, build_teacher

GHOST = {"name": "ghost", "ratio": 2}
SETTING = "model.transforms=[{name: ghost, ratio: 2}]"


def network():
    torch.manual_seed(0)
    return timm.create_model("resnet8_cifar", in_chans=1)


def sample():
    return torch.zeros(1, 1, 8, 8)


def built(config, *settings, load_weights=True):
    chosen = config("quant=none", *settings)
    return build_model(chosen.model, chosen.quant, 10, (1, 8, 8), load_weights)


@pytest.mark.parametrize(
    ("transforms", "said"),
    [
        ([{"name": "gost"}], "unknown transform 'gost'; did you mean 'ghost'"),
        ([{"name": "ghost", "ration": 3}], "unknown option of transform 'ghost' 'ration'; did"),
        (["ghost"], "a transform is {name: NAME, option: value, ...}, not 'ghost'"),
        ({"name": "ghost"}, "transforms are a list"),
        ([{"ratio": 2}], "a transform is {name: NAME"),
    ],
)
def test_what_is_wrong_is_said(transforms, said):
    with pytest.raises(UserError, match="^" + said.replace("{", r"\{").replace("...", r"\.\.\.")):
        dqnet.transforms.apply(network(), sample(), transforms)


def test_a_run_with_an_unknown_transform_ends_with_one_line(command):
    result = command("train.py", "model.transforms=[{name: gohst}]")
    assert result.status == 1
    assert result.err == ["error: unknown transform 'gohst'; did you mean 'ghost'?"]


def test_they_are_applied_in_order_and_new_modules_are_in_the_models_mode():
    model = network().eval()
    twice = [GHOST | {"layers": ["layer1.0.conv1"]}, GHOST | {"layers": ["layer1.0.conv1.primary"]}]
    assert dqnet.transforms.apply(model, sample(), twice) is model
    assert model.layer1[0].conv1.primary.primary.out_channels == 4
    assert not any(module.training for module in model.modules())


@pytest.fixture
def saved(tmp_path):
    """``saved(model)``: the file of its weights."""

    def save(model):
        torch.save(model.state_dict(), tmp_path / "w.pt")
        return f"model.checkpoint_path={tmp_path / 'w.pt'}"

    return save


def same_weights(a, b, but_for=()):
    """In all tensors, of some only the shapes, which are random."""
    a, b = (dict(model.state_dict()) for model in (a, b))
    for key in a.keys() & b.keys():
        if key.endswith(but_for):
            a[key], b[key] = a[key].shape, b[key].shape
    return tiny.same(a, b)


CHEAP = ("cheap.weight",)


def test_a_checkpoint_of_the_plain_network_is_loaded_before(config, saved):
    plain = network()
    expected = dqnet.transforms.apply(copy.deepcopy(plain), sample(), [GHOST])
    assert same_weights(built(config, SETTING, saved(plain)), expected, CHEAP)


def test_a_checkpoint_of_the_transformed_network_is_loaded_after(config, saved):
    trained = dqnet.transforms.apply(network(), sample(), [GHOST])
    for parameter in trained.parameters():
        nn.init.normal_(parameter)
    assert same_weights(built(config, SETTING, saved(trained)), trained)


def test_a_checkpoint_between_two_transforms(config, saved):
    first, second = ({**GHOST, "layers": [f"layer{i}.*"]} for i in (1, 2))
    between = dqnet.transforms.apply(network(), sample(), [first])
    expected = dqnet.transforms.apply(copy.deepcopy(between), sample(), [second])
    both = "model.transforms=" + json.dumps([first, second]).replace('"', "")
    made = built(config, both, saved(between))
    assert same_weights(made, expected, CHEAP)
    assert torch.equal(made.layer1[0].conv1.cheap.weight, between.layer1[0].conv1.cheap.weight)


def test_a_checkpoint_of_another_network_is_refused(config, saved):
    other = timm.create_model("resnet20_cifar", in_chans=1)
    with pytest.raises(UserError, match="is a checkpoint of another model: it has 'layer1"):
        built(config, SETTING, saved(other))


def test_structure_does_not_depend_on_weights(config, saved):
    shapes = {k: v.shape for k, v in built(config, SETTING, saved(network())).state_dict().items()}
    fresh = built(config, SETTING, "model.checkpoint_path=gone.pt", load_weights=False)
    assert {k: v.shape for k, v in fresh.state_dict().items()} == shapes


def test_the_teacher_is_the_network_of_the_checkpoint(config, saved):
    plain = network()
    ghost = dqnet.transforms.apply(network(), sample(), [GHOST])
    for model in (plain, ghost):
        chosen = config(SETTING, saved(model))
        assert same_weights(build_teacher(chosen.model, 10, (1, 8, 8)), model)


def test_a_run_is_trained_quantized_and_evaluated(run, measure):
    """Float, from it quantized with widths per image, and evaluated from its own checkpoint."""
    floating = run(SETTING, "quant=none", "trainer.epochs=2")
    start = f"model.checkpoint_path={floating.folder / 'best.pt'}"
    dynamic = run(SETTING, start, "quant=lsq", "quant.widths=[2,4]")
    plan = json.loads((dynamic.folder / "plan.json").read_text())
    roles = {layer["name"]: layer["role"] for layer in plan["layers"]}
    assert roles["layer2.0.conv1.primary"] == roles["layer2.0.conv1.cheap"] == "routed"
    figures = measure(dynamic.folder)
    assert figures["top1"] == dynamic.summary["top1"]
