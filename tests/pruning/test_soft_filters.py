"""Soft filters: which are chosen, that they go on learning, and that what is saved has zeros."""

from itertools import pairwise

import numpy as np
import pytest
import timm
import tiny  # noqa: F401  registers resnet8_cifar
import torch
from several import several
from tiny import assert_same_run, cut_off
from torch import nn

from dqnet.config import PruneConfig
from dqnet.errors import UserError
from dqnet.pruning import build_pruning
from dqnet.pruning.free_filters import free_filters
from dqnet.training import train as loop

SHAPE = (1, 8, 8)
INNER = [f"layer{stage}.0.conv1" for stage in (1, 2, 3)]
SOFT = "quant=none", "prune=soft_filters", "prune.ratio=0.4"


def block(*modules):
    return nn.Sequential(*modules)


class Ends(nn.Module):
    """Filters whose output goes where ``tail`` sends it, then into a convolution and a mean."""

    def __init__(self, *tail, into=6):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.tail = block(*tail)
        self.last = nn.Conv2d(into, 10, 1)

    def forward(self, x):
        return self.last(self.tail(self.conv(x))).mean((2, 3))


class Added(Ends):
    def forward(self, x):
        y = self.conv(x)
        return self.last(self.tail(y) + y).mean((2, 3))


class Twice(Ends):
    def forward(self, x):
        return self.last(self.conv(self.conv(x)[:, :1])).mean((2, 3))


class ReadTwice(Ends):
    def forward(self, x):
        return (self.last(self.conv(x)) + self.last(x.expand(-1, 6, -1, -1))).mean((2, 3))


class Joined(Ends):
    def forward(self, x):
        return self.last(torch.cat((self.conv(x), x), 1)).mean((2, 3))


def depthwise():
    return nn.Conv2d(6, 6, 3, groups=6)


@pytest.mark.parametrize(
    ("model", "behind"),
    [
        (Ends(nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)), ["tail.0"]),
        (Ends(nn.ReLU6(), depthwise(), nn.BatchNorm2d(6)), ["tail.1", "tail.2"]),
        (Ends(nn.BatchNorm2d(6, affine=False)), None),
        (Ends(nn.Sigmoid()), None),
        (Ends(nn.Hardtanh(0.5, 1)), None),
        (Ends(nn.Conv2d(6, 6, 3, groups=2)), None),
        (Added(nn.ReLU()), None),
        (Twice(), None),
        (ReadTwice(), None),
        (Joined(into=7), None),
    ],
)
def test_filters_that_can_be_removed_alone(model, behind):
    found = free_filters(model, SHAPE)
    assert found.get("conv") == behind
    assert "last" not in found  # its filters are the network's result


def test_in_a_residual_network_they_are_the_inner_ones():
    model = timm.create_model("resnet8_cifar", in_chans=1)
    assert free_filters(model, SHAPE) == {name: [name.replace("conv", "bn")] for name in INNER}
    bottlenecks = free_filters(timm.create_model("resnet50"), (3, 64, 64))
    assert sorted(bottlenecks) == sorted(
        ["conv1"]
        + [f"layer{s}.{b}.conv{c}" for s, n in enumerate((3, 4, 6, 3), 1) for b in range(n)
           for c in (1, 2)]
    )  # fmt: skip


def learnt():
    """A network whose norms have values of their own."""
    torch.manual_seed(0)
    model = timm.create_model("resnet8_cifar", in_chans=1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return model


def test_filters_of_smallest_norm_go_and_come_back():
    model, before = learnt(), learnt().state_dict()
    config = PruneConfig(name="soft_filters", ratio=0.4, layers={"layer3*": 0.25})
    pruning = build_pruning(config, model, None, SHAPE, 1)
    pruning.after_epoch()
    after = model.state_dict()
    for name in INNER:
        norm = name.replace("conv", "bn")
        weight = before[f"{name}.weight"].numpy()
        norms = np.sqrt((weight.astype(np.float64) ** 2).sum((1, 2, 3)))
        ratio = 0.25 if name.startswith("layer3") else 0.4
        gone = sorted(np.argsort(norms)[: int(ratio * len(norms))])
        for key in (f"{name}.weight", f"{norm}.weight", f"{norm}.bias"):
            zero = (after[key].reshape(len(norms), -1) == 0).all(1)
            assert zero.nonzero().flatten().tolist() == gone, key
            assert torch.equal(after[key][~zero], before[key][~zero])
    pruning.before_epoch()
    again = model.state_dict()
    convolutions = {f"{name}.weight" for name in INNER}
    assert all(torch.equal(again[k], before[k]) for k in before.keys() - convolutions)
    assert all((again[key] == 0).any() for key in convolutions)
    assert pruning.state_dict() == {"aside": [{}]}


def test_an_average_is_pruned_by_its_own_norms_and_put_back_whole():
    model, average = learnt(), learnt()
    with torch.no_grad():
        average.layer1[0].conv1.weight[:3] /= 100
    before = {name: value.clone() for name, value in average.state_dict().items()}
    config = PruneConfig(name="soft_filters", ratio=0.2)
    pruning = build_pruning(config, model, average, SHAPE, 1)
    pruning.after_epoch()
    assert not average.layer1[0].conv1.weight[:3].any()
    pruning.before_epoch()
    assert all(torch.equal(before[name], v) for name, v in average.state_dict().items())


def test_zeroed_filters_learn_in_the_next_epoch(run, monkeypatch):
    train_epoch, zeros = loop.train_epoch, []

    def watched(state, batches, console):
        train_epoch(state, batches, console)
        weight = state.learner.model.layer3[0].conv1.weight
        zeros.append((weight.flatten(1) == 0).all(1).nonzero().flatten().tolist())

    monkeypatch.setattr(loop, "train_epoch", watched)
    done = run(*SOFT, "trainer.epochs=4", "data.val_fraction=0.25", "optim.lr=0.2")
    assert [len(gone) for gone in zeros] == [25] * 4
    assert any(before != after for before, after in pairwise(zeros))
    best = done.checkpoint("best.pt")["model"]
    for name in INNER:
        gone = (best[f"{name}.weight"].flatten(1) == 0).all(1)
        assert gone.sum() == int(0.4 * len(gone))
        for kind in ("weight", "bias"):
            assert not best[f"{name.replace('conv', 'bn')}.{kind}"][gone].any()
    inner = sum(best[f"{name}.weight"].numel() for name in INNER)
    total = sum(v.numel() for n, v in best.items() if n.endswith("weight") and v.dim() > 1)
    assert done.summary["weight_sparsity"] == pytest.approx(0.4 * inner / total, abs=0.01)


def test_a_run_that_is_stopped_between_zeroing_and_saving_goes_on(run, monkeypatch, tmp_path):
    settings = *SOFT, "trainer.epochs=2", "data.val_fraction=0.25", "trainer.checkpoint_steps=1"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "evaluate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run(*settings, folder=tmp_path / "run")
    assert_same_run(run(*settings, folder=tmp_path / "run"), run(*settings))
    cut_off(run, 4, *settings, folder=tmp_path / "other")
    assert_same_run(run(*settings, folder=tmp_path / "other"), run(*settings))


def test_two_processes_zero_the_same_filters(run, tmp_path):
    results = several(
        lambda rank: vars(run(*SOFT, "trainer.epochs=2", folder=tmp_path / f"{rank}"))
    )
    assert [type(result) for result in results] == [dict, dict], results
    shares = [result["summary"]["weight_sparsity"] for result in results]
    assert shares[0] == shares[1] > 0.1


@pytest.mark.parametrize("quant", [["quant=lsq"], ["quant=affine", "quant.widths=[4]"]])
def test_quantized_networks_learn_with_soft_filters(run, quant):
    done = run(*quant, "prune=soft_filters")
    weight = done.checkpoint("best.pt")["model"]["backbone.layer3.0.conv1.weight"]
    assert (weight.flatten(1) == 0).all(1).sum() == 25


def test_without_epochs_filters_go_at_once(run, tmp_path):
    float_ = run("quant=none")
    start = f"model.checkpoint_path={float_.folder / 'best.pt'}"
    done = run(*SOFT, "trainer.epochs=0", start, folder=tmp_path / "pruned")
    before, after = float_.checkpoint("best.pt")["model"], done.checkpoint("best.pt")["model"]
    for name in INNER:
        norms = before[f"{name}.weight"].flatten(1).norm(dim=1)
        gone = torch.zeros(len(norms), dtype=torch.bool)
        gone[norms.argsort()[: int(0.4 * len(norms))]] = True
        assert torch.equal((after[f"{name}.weight"].flatten(1) == 0).all(1), gone)
        for kind in ("weight", "bias"):
            norm = f"{name.replace('conv', 'bn')}.{kind}"
            assert torch.equal(after[norm], before[norm].masked_fill(gone, 0))
    assert done.summary["weight_sparsity"] > 0.1


def test_adaround_leaves_the_filters_zero(run):
    rounding = "quant.post_training.adaround=20", "quant.fold_batch_norm=true"
    static = "quant=affine", "quant.widths=[4]", "trainer.epochs=0", *SOFT[1:]
    best = run(*static, *rounding).checkpoint("best.pt")["model"]
    for name in INNER:
        gone = (best[f"backbone.{name}.weight"].flatten(1) == 0).all(1)
        assert gone.sum() == int(0.4 * len(gone))


class NoneFree(nn.Sequential):
    def forward(self, x):
        return super().forward(x).mean((2, 3))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["prune.ratio=1"], "prune.ratio 1.0 must be in"),
        (["prune.layers={linear: 0.5}"], "unknown .* whose filters can be removed alone 'linear'"),
        (["quant=dorefa"], "DoReFaWeight cannot write a zero"),
        (["quant=codebook"], "CodebookWeight assigns the weights"),
    ],
)
def test_what_is_wrong_is_said(run, settings, said):
    with pytest.raises(UserError, match=said):
        run("quant=none", "prune=soft_filters", *settings)


def test_a_network_without_such_filters_is_refused():
    with pytest.raises(UserError, match="no convolution whose filters can be removed alone"):
        config = PruneConfig(name="soft_filters", ratio=0.5)
        build_pruning(config, NoneFree(nn.Conv2d(1, 4, 3)), None, SHAPE, 1)
