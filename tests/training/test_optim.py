"""Which parameters decay and how fast they learn, and the learning rate of every update."""

import io
import math
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import timm.optim
import torch
from tiny import same
from torch import nn

from dqnet.errors import UserError
from dqnet.training.build import build_model
from dqnet.training.optim import build_optimizer, build_schedule, parameter_groups

EPOCHS, UPDATES = 5, 4
LR = 0.2


@pytest.fixture
def settings(config):
    """``settings(lr=..., ...)``: the optim section."""
    return lambda **changes: replace(config().optim, **changes)


@pytest.fixture
def model(config):
    """``model("quant=pact", ...)``: what train.py would build."""

    def build(*overrides):
        chosen = config(*overrides)
        return build_model(chosen.model, chosen.quant, 10, (1, 8, 8))

    return build


FORMS = ["quant=pact", "quant=lsq", "quant=dorefa", "quant=none", "quant.widths=[3]"]


@pytest.mark.parametrize("form", FORMS)
def test_every_trainable_parameter_is_in_one_group(model, settings, form):
    built = model(form)
    frozen = next(built.parameters()).requires_grad_(False)
    groups = parameter_groups(built, settings(), 0.0)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in built.parameters() if p is not frozen)


@pytest.mark.parametrize("form", FORMS)
def test_only_layers_weights_and_pacts_alpha_decay(model, settings, form):
    built = model(form)
    optimizer = build_optimizer(built, settings(name="sgd", weight_decay=0.5), 0.25)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    layers = {
        id(module.weight) for module in built.modules() if isinstance(module, nn.Conv2d | nn.Linear)
    }
    found = set()
    for name, parameter in built.named_parameters():
        expected = 0.5 if id(parameter) in layers else 0.25 if name.endswith("alpha") else 0.0
        assert decay[id(parameter)] == expected, name
        found.add(expected)
    assert found == ({0.0, 0.25, 0.5} if form == "quant=pact" else {0.0, 0.5})


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb"])
def test_controller_has_a_learning_rate_of_its_own(model, settings, name):
    built = model()
    chosen = settings(name=name, lr=LR, controller_lr_scale=0.1)
    optimizer = build_optimizer(built, chosen, 0.0)
    lr = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in built.named_parameters():
        scale = 0.1 if name.startswith("controller.") else 1
        assert lr[id(parameter)] == pytest.approx(scale * LR), name


def test_sgd_is_nesterovs_with_the_given_momentum(model, settings):
    optimizer = build_optimizer(model(), settings(name="sgd", momentum=0.7), 0.0)
    assert type(optimizer) is torch.optim.SGD
    assert all(g["momentum"] == 0.7 and g["nesterov"] for g in optimizer.param_groups)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"name": "sgdd"}, "unknown optimizer 'sgdd'; did you mean 'sgd'"),
        ({"lr": 0.0}, "optim.lr 0.0 must be above 0"),
        ({"lr": -1.0}, "optim.lr -1.0 must be above 0"),
        ({"weight_decay": -1.0}, "must not be negative"),
        ({"momentum": 1.0}, r"optim.momentum 1.0 must be in \[0, 1\)"),
        ({"clip_grad": 0.0}, "optim.clip_grad 0.0 must be above 0"),
    ],
)
def test_optimizer_settings_out_of_range(settings, changes, message):
    with pytest.raises(UserError, match=message):
        build_optimizer(nn.Linear(2, 2), settings(**changes), 0.0)


class EveryShape(nn.Module):
    """A network with parameters of zero, one, two and four dimensions."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3)
        self.step_size, self.head = nn.Parameter(torch.tensor(0.5)), nn.Linear(3, 2)

    def forward(self, images):
        features = self.norm(self.conv(images)).relu() * self.step_size
        return self.head(features.mean((2, 3)))


def trained(settings, updates, state=None):
    """A network and its optimizer after some updates, with a warm-up that begins at a rate of 0."""
    torch.manual_seed(0)
    network = EveryShape()
    optimizer = build_optimizer(network, settings, 0.0)
    schedule = build_schedule(optimizer, settings, EPOCHS, UPDATES)
    if state is not None:
        state.seek(0)
        for part, content in zip(
            (network, optimizer), torch.load(state, weights_only=True), strict=True
        ):
            part.load_state_dict(content)
    for update in updates:
        schedule.step_update(update)
        torch.manual_seed(update)
        loss = nn.functional.cross_entropy(network(torch.randn(4, 1, 6, 6)), torch.arange(4) % 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network, optimizer


#: optimizers that cannot train here, by what their names begin with; the rest can
REFUSED = {
    "adahessian": "needs second derivatives, which quantizers do not have",
    "kron": "takes gigabytes to precondition one convolution",
    "fused": "needs the package apex, which is not installed",
    "bnb": "needs the package bitsandbytes, which is not installed",
}


@pytest.mark.parametrize("prefix", ["", "lookahead_"])
@pytest.mark.parametrize("name", timm.optim.list_optimizers())
def test_any_optimizer_trains_and_continues_or_is_refused(settings, monkeypatch, name, prefix):
    for package in ("apex", "bitsandbytes"):
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    chosen = settings(name=prefix + name, lr=0.01, warmup_epochs=0.5)
    reason = next((why for begin, why in REFUSED.items() if name.startswith(begin)), None)
    if reason is not None:
        with pytest.raises(UserError, match=rf"optim\.name={prefix + name} {reason}") as caught:
            trained(chosen, [])
        assert "\n" not in str(caught.value)
        return
    before, _ = trained(chosen, [])
    whole, _ = trained(chosen, range(8))
    assert all(value.isfinite().all() for value in whole.state_dict().values())
    moved = [
        not torch.equal(a, b) for a, b in zip(whole.parameters(), before.parameters(), strict=True)
    ]
    assert all(moved)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in trained(chosen, range(5))], file)
    continued, _ = trained(chosen, range(5, 8), file)
    assert same(dict(whole.state_dict()), dict(continued.state_dict()))


def test_optimizers_of_other_packages_need_a_gpu(settings, monkeypatch):
    module = ModuleType("apex")
    module.__spec__ = ModuleSpec("apex", None)
    monkeypatch.setitem(sys.modules, "apex", module)
    with pytest.raises(UserError, match=r"fusedadam runs on a GPU only \(trainer\.device=cuda\)"):
        trained(settings(name="fusedadam"), [])


def test_whatever_an_optimizer_does_not_like_is_one_line(settings, monkeypatch):
    def create(*args, **kwargs):
        raise AssertionError("no extension\nfor this machine")

    monkeypatch.setattr("dqnet.training.optim.create_optimizer_v2", create)
    with pytest.raises(UserError, match=r"optim\.name=lamb cannot be used here: no extension$"):
        trained(settings(name="lamb"), [])


def cosine(t, warmup):
    return 0.01 + (LR - 0.01) * (1 + math.cos(math.pi * (t - warmup) / (20 - warmup))) / 2


#: schedule: (settings, the learning rate of update t after the warm-up's updates)
SCHEDULES = {
    "constant": ({}, lambda t, warmup: LR),
    "cosine": ({"min_lr": 0.01}, cosine),
    # Every two epochs, counted from the end of the warm-up.
    "step": (
        {"decay_epochs": 2, "decay_rate": 0.5},
        lambda t, warmup: LR * 0.5 ** ((t - warmup) // (2 * UPDATES)),
    ),
    # After two and four epochs of the whole training.
    "multistep": (
        {"milestones": [2, 4], "decay_rate": 0.1},
        lambda t, warmup: LR * 0.1 ** ((t >= 2 * UPDATES) + (t >= 4 * UPDATES)),
    ),
}


def rates(settings, groups=(LR,)):
    """The learning rates of each update, [EPOCHS · UPDATES][group]."""
    parameters = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in groups]
    optimizer = torch.optim.SGD(parameters, lr=LR)
    schedule = build_schedule(optimizer, settings, EPOCHS, UPDATES)
    seen = []
    for t in range(EPOCHS * UPDATES):
        schedule.step_update(t)
        seen.append([group["lr"] for group in optimizer.param_groups])
    return seen


@pytest.mark.parametrize("warmup_epochs", [0, 1, 1.5])
@pytest.mark.parametrize("name", SCHEDULES)
def test_learning_rate_is_the_formulas(settings, name, warmup_epochs):
    changes, formula = SCHEDULES[name]
    chosen = settings(schedule=name, lr=LR, warmup_epochs=warmup_epochs, **changes)
    warmup = round(warmup_epochs * UPDATES)
    expected = [
        LR * t / warmup if t < warmup else formula(t, warmup) for t in range(EPOCHS * UPDATES)
    ]
    assert [lr for (lr,) in rates(chosen)] == pytest.approx(expected)


@pytest.mark.parametrize("name", SCHEDULES)
def test_groups_keep_their_ratio(settings, name):
    chosen = settings(schedule=name, lr=LR, min_lr=0.0, warmup_epochs=1)
    for whole, scaled in rates(chosen, (LR, LR / 10)):
        assert scaled == pytest.approx(whole / 10)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"schedule": "cosin"}, "unknown schedule 'cosin'; did you mean 'cosine'"),
        ({"warmup_epochs": 5}, "optim.warmup_epochs 5 must be less than trainer.epochs 5"),
        ({"warmup_epochs": -1}, "optim.warmup_epochs -1"),
    ],
)
def test_schedule_settings_out_of_range(settings, changes, message):
    with pytest.raises(UserError, match=message):
        rates(settings(**changes))
