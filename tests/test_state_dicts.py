"""State dicts as wrappers write them load into a converted network, or are refused in one line."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import dqnet
from dqnet import UserError


class Net(nn.Module):
    def __init__(self, channels=8):
        super().__init__()
        self.stem, self.a, self.b = (nn.Conv2d(c, channels, 3) for c in (3, channels, channels))
        self.fc = nn.Linear(channels, 5)

    def forward(self, x):
        return self.fc(self.b(self.a(self.stem(x).relu()).relu()).relu().mean((2, 3)))


def converted(seed, quantizer="lsq"):
    torch.manual_seed(seed)
    model = dqnet.quantize(Net(), torch.zeros(1, 3, 8, 8), (2, 3), quantizer, shared_until="a")
    with torch.no_grad():
        model.eval()(torch.randn(4, 3, 8, 8))
    return model


def prefixed(prefix):
    return lambda model: {prefix + k: v for k, v in model.state_dict().items()}


WRITERS = {
    "parallel": prefixed("module."),
    "compiled": lambda model: torch.compile(model).state_dict(),
    "parallel, compiled": prefixed("module._orig_mod."),
    "Lightning": prefixed("model."),
    "average": lambda model: AveragedModel(model).state_dict(),
}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("writer", WRITERS)
def test_prefixes_of_wrappers_are_understood(writer, strict):
    theirs, ours = converted(0), converted(1)
    state = WRITERS[writer](theirs)
    names = list(state)
    ours.load_state_dict(state, strict=strict)
    assert list(state) == names
    x = torch.randn(4, 3, 8, 8)
    for a, b in zip(ours(x), theirs(x), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model._orig_mod."])
def test_prefixes_of_the_float_networks_names_are_understood(prefix):
    model, net = converted(0), Net()
    controller = [p.clone() for p in model.controller.parameters()]
    model.load_state_dict(prefixed(prefix)(net))
    own = model.backbone.state_dict()
    assert all(torch.equal(own[name], value) for name, value in net.state_dict().items())
    assert all(map(torch.equal, controller, model.controller.parameters()))
    assert not model.backbone.b.weight_quantizer.ready  # set again, from these weights


@pytest.mark.parametrize("kind", ["own", "float"])
def test_single_layers_may_have_been_compiled(kind):
    theirs = converted(0) if kind == "own" else Net()
    state = {
        k.replace("a.", "a._orig_mod.") if k.startswith(("a.", "backbone.a.")) else k: v
        for k, v in theirs.state_dict().items()
    }
    model = converted(1)
    model.load_state_dict(state)
    layer = theirs.get_submodule("backbone.a" if kind == "own" else "a")
    assert torch.equal(model.backbone.a.weight, layer.weight)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "state",
    [
        {"model": Net().state_dict(), "epoch": 3},
        {"module.features.0.weight": torch.zeros(3)},
        {"weight": torch.zeros(3)},
        {"n_averaged": torch.tensor(1)},
    ],
    ids=["checkpoint", "another network", "no prefix", "counter alone"],
)
def test_a_state_dict_of_which_nothing_fits_is_refused(state, strict):
    model = converted(0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UserError, match="the state dict is not this model's: it has") as error:
        model.load_state_dict(state, strict=strict)
    assert "\n" not in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_network_with_a_compiled_layer_takes_names_without_it():
    theirs, ours = converted(0), converted(1)
    ours.backbone.a = torch.compile(ours.backbone.a)
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours.backbone.a._orig_mod.weight, theirs.backbone.a.weight)


def test_a_larger_network_may_load_its_other_parts_alone():
    outer = nn.ModuleDict({"student": converted(0), "other": nn.Linear(2, 2)})
    before = outer["student"].backbone.a.weight.clone()
    outer.load_state_dict({"other.bias": torch.ones(2)}, strict=False)
    assert outer["other"].bias.tolist() == [1, 1]
    assert torch.equal(outer["student"].backbone.a.weight, before)
