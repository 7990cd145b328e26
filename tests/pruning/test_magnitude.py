"""Magnitude pruning against PyTorch's own, and zeros that stay through a whole training."""

import copy

import pytest
import timm
import tiny  # noqa: F401  registers resnet8_cifar
import torch
from several import several
from tiny import assert_same_run, cut_off, same
from torch import nn
from torch.nn.utils import prune

from dqnet.config import PruneConfig
from dqnet.errors import UserError
from dqnet.pruning import build_pruning, prunable_layers, weight_sparsity
from dqnet.training.learner import Learner

SHAPE = (1, 8, 8)
WHOLE = "quant=none", "prune=magnitude", "prune.ratio=0.8"


def network():
    torch.manual_seed(0)
    return timm.create_model("resnet8_cifar", in_chans=1)


def pruned(updates=1, average=None, **settings):
    model = network()
    config = PruneConfig(name="magnitude", **settings)
    return model, build_pruning(config, model, average, SHAPE, updates)


def zeros_of(checkpoint, key="model"):
    """Where the weights of convolutions and fully connected layers are zero."""
    state = checkpoint[key]
    return {n: value == 0 for n, value in state.items() if n.endswith("weight") and value.dim() > 1}


@pytest.mark.parametrize("ratio", [0.29, 0.5, 0.999])
def test_of_each_layer_the_same_weights_go_as_by_pytorch(ratio):
    model, _ = pruned(ratio=ratio, until=0.0)
    for name, layer in prunable_layers(network()).items():
        count = int(ratio * layer.weight.numel() + 1e-9)
        prune.l1_unstructured(layer, "weight", amount=count)
        assert torch.equal(model.get_submodule(name).weight, layer.weight), name


def test_of_all_layers_together_the_same_weights_go_as_by_pytorch():
    model, _ = pruned(ratio=0.7, scope="global", layers={"linear": 0.25})
    expected = network()
    layers = prunable_layers(expected)
    prune.l1_unstructured(layers["linear"], "weight", amount=160)
    pool = [(layer, "weight") for name, layer in layers.items() if name != "linear"]
    count = int(0.7 * sum(layer.weight.numel() for layer, _ in pool))
    prune.global_unstructured(pool, prune.L1Unstructured, amount=count)
    for name, layer in layers.items():
        assert torch.equal(model.get_submodule(name).weight, layer.weight), name


def test_the_last_pattern_wins_and_biases_and_norms_stay():
    layers = {"*": 0.1, "layer1*": 0.5, "layer1.0.conv2": 0.0}
    model, _ = pruned(ratio=0.9, layers=layers)
    shares = {n: weight_sparsity(layer) for n, layer in prunable_layers(model).items()}
    assert shares["layer1.0.conv1"] == 0.5 and shares["layer1.0.conv2"] == 0
    assert shares["layer3.0.conv1"] == pytest.approx(0.1, abs=1e-3)
    before, after = network().state_dict(), model.state_dict()
    weights = {f"{name}.weight" for name in shares}
    assert all(torch.equal(before[name], after[name]) for name in before.keys() - weights)


def test_one_weight_of_a_layer_stays_and_an_empty_layer_is_warned_of():
    model, _ = pruned(ratio=0.99999)
    assert all(layer.weight.count_nonzero() == 1 for layer in prunable_layers(model).values())
    with pytest.warns(UserWarning, match="layer 'conv1' has no weight left"):
        model = network()
        model.conv1.weight.data.mul_(1e-6)
        build_pruning(
            PruneConfig(name="magnitude", ratio=0.5, scope="global"), model, None, SHAPE, 1
        )


def test_gradual_pruning_follows_its_equation():
    """Eq. 1 of Zhu and Gupta, every third of 20 steps until the twelfth; what is zero stays."""
    model, pruning = pruned(updates=20, ratio=0.8, until=0.6, every=3)
    weight, total = model.layer3[0].conv1.weight, 32 * 64 * 9
    done = torch.zeros_like(weight, dtype=torch.bool)
    for update in range(20):
        with torch.no_grad():
            weight += 0.01 * torch.randn_like(weight)
        pruning.after_step(update)
        steps = min(12, (update + 1) // 3 * 3)
        expected = 0.8 + (0 - 0.8) * (1 - steps / 12) ** 3
        assert int((weight == 0).sum()) == int(expected * total + 1e-6), update
        assert (weight == 0)[done].all()
        done = weight == 0


@pytest.mark.parametrize(
    "settings",
    [
        ("quant=none", "trainer.ema=0.9", "optim.clip_grad=0.5", "optim.weight_decay=0.1"),
        ("quant=none", "optim=adamw", "prune.until=0.6", "prune.every=1"),
        ("quant=lsq", "trainer.ema=0.9"),
        ("quant=affine", "quant.widths=[4]", "quant.fold_batch_norm=corrected"),
    ],
    ids=["averaged", "gradual", "lsq", "affine"],
)
def test_zeros_stay_after_every_step(run, monkeypatch, settings):
    step, counts = Learner.step, []

    def checked(learner, *batch):
        terms = step(learner, *batch)
        networks = [learner.model] if learner.ema is None else [learner.model, learner.ema.module]
        for network in networks:
            for name, layer in prunable_layers(network).items():
                assert not layer.weight[learner.pruning.zeros[name]].any(), name
        counts.append(weight_sparsity(learner.model))
        return terms

    monkeypatch.setattr(Learner, "step", checked)
    done = run("prune=magnitude", "prune.ratio=0.8", "trainer.epochs=2", *settings)
    assert counts == sorted(counts) and len(counts) == 8
    assert done.summary["weight_sparsity"] == counts[-1] == pytest.approx(0.8, abs=1e-3)
    gradual = "prune.until=0.6" in settings
    assert (counts[0] < 0.5) == gradual


def test_pruned_gradients_count_in_no_norm():
    model, pruning = pruned(ratio=0.9)
    model(torch.randn(2, *SHAPE)).sum().backward()
    pruning.after_backward()
    for name, layer in prunable_layers(model).items():
        assert not layer.weight.grad[pruning.zeros[name]].any()
        assert layer.weight.grad[~pruning.zeros[name]].any()


@pytest.mark.parametrize(
    "quant", [["quant=none"], ["quant=lsq", "quant.widths=[2,4]"], ["quant=minifloat"]]
)
def test_without_epochs_the_network_is_pruned_at_once(run, quant):
    done = run(*quant, "prune=magnitude", "prune.until=0.5", "trainer.epochs=0")
    assert done.summary["weight_sparsity"] == pytest.approx(0.9, abs=1e-3)


def test_adaround_leaves_zeros(run):
    rounding = "quant.post_training.adaround=20", "quant.fold_batch_norm=true"
    static = "quant=affine", "quant.widths=[4]", "trainer.epochs=0", "prune=magnitude"
    assert run(*static, *rounding).summary["weight_sparsity"] >= 0.899


@pytest.mark.parametrize("quant", ["quant=none", "quant=lsq", "quant=affine"])
def test_a_pruned_checkpoint_keeps_its_zeros(run, quant):
    first = run(*WHOLE)
    start = f"model.checkpoint_path={first.folder / 'best.pt'}"
    second = run(quant, start, "prune=keep", "trainer.epochs=2", "trainer.ema=0.9")
    assert "weights that are zero" in second.text and "80." in second.text
    theirs = zeros_of(first.checkpoint("best.pt"))
    for key in ("model", "ema"):
        ours = zeros_of(second.checkpoint("best.pt"), key)
        assert all(ours[n if n in ours else f"backbone.{n}"][z].all() for n, z in theirs.items())
    assert second.summary["weight_sparsity"] == pytest.approx(0.8, abs=1e-3)
    without = run(quant, start, "trainer.epochs=2")
    assert "weight_sparsity" not in without.summary
    moved = zeros_of(without.checkpoint("best.pt"))
    name = "layer3.0.conv2.weight"
    assert moved.get(name, moved.get(f"backbone.{name}")).float().mean() < 0.1


def test_a_run_that_was_cut_off_goes_on_bit_for_bit(run, tmp_path):
    settings = (
        *WHOLE, "trainer.epochs=2", "trainer.ema=0.9", "prune.until=0.9", "prune.every=2",
        "trainer.checkpoint_steps=1",
    )  # fmt: skip
    for update in (3, 5):
        cut_off(run, update, *settings, folder=tmp_path / "run")
    assert_same_run(run(*settings, folder=tmp_path / "run"), run(*settings))


def test_two_processes_have_the_same_zeros(run, tmp_path):
    settings = *WHOLE, "trainer.epochs=2", "prune.until=0.5", "prune.every=2"
    results = several(lambda rank: vars(run(*settings, folder=tmp_path / f"{rank}")))
    assert [type(result) for result in results] == [dict, dict], results
    assert results[0]["summary"]["weight_sparsity"] == results[1]["summary"]["weight_sparsity"]
    state = torch.load(tmp_path / "0" / "last.pt", weights_only=True)
    zeros = {f"{name}.weight": mask for name, mask in state["pruning"]["zeros"].items()}
    assert same(zeros, zeros_of(state))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["prune=magnitude", "prune.ratio=1"], r"prune.ratio 1.0 must be in \[0, 1\)"),
        (["prune=magnitude", "prune.ratio=-0.1"], r"prune.ratio -0.1 must be in \[0, 1\)"),
        (["prune=magnitude", "prune.layers={conv1: 1}"], r"'conv1': 1 must be in \[0, 1\)"),
        (["prune=magnitude", "prune.layers={conv1: lots}"], "'conv1': lots must be in"),
        (["prune=magnitude", "prune.layers={conv9: 0.5}"], "unknown prune.layers layer 'conv9'"),
        (["prune=magnitude", "prune.layers=0.5"], "prune.layers 0.5 is not a table"),
        (["prune=magnitude", "prune.scope=all"], "unknown prune.scope 'all'"),
        (["prune=magnitude", "prune.until=2"], r"prune.until 2.0 must be in \[0, 1\]"),
        (["prune=magnitude", "prune.every=0"], "prune.every 0 must be at least 1"),
        (["prune=keep"], "prune=keep keeps zeros, and the weights have none"),
        (["prune.ratio=0.5"], "prune.ratio and prune.layers do nothing by themselves"),
        (["prune.name=magnitud"], "unknown prune 'magnitud'; did you mean 'magnitude'"),
        (["prune=magnitude", "quant=dorefa"], "DoReFaWeight cannot write a zero in 3 bits"),
        (["prune=magnitude", "quant=pact"], "cannot write a zero"),
        (["prune=magnitude", "quant=lsq", "quant.widths=[1,4]"], "LSQWeight cannot write a zero"),
        (["prune=magnitude", "quant=qnn", "quant.widths=[w1a2]"], "cannot write a zero in 1 bits"),
        (["prune=magnitude", "quant=codebook", "prune.until=0.5"], "weights .* to clusters once"),
        (["prune=magnitude", "quant=codebook"], "CodebookWeight cannot write a zero"),
    ],
)
def test_what_is_wrong_is_said(run, settings, said):
    with pytest.raises(UserError, match=said):
        run("quant=none", *settings)


def test_a_network_with_nothing_to_prune_is_refused():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)

    for model in (nn.Sequential(nn.BatchNorm2d(1)), nn.Sequential(Standardised(1, 4, 3))):
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(UserError, match="no convolution or fully connected layer"):
            build_pruning(PruneConfig(name="magnitude", ratio=0.5), model, None, SHAPE, 1)
        assert same(dict(before), dict(model.state_dict()))


def test_a_mistake_ends_with_one_line(command):
    result = command("train.py", "quant=none", "prune=magnitude", "prune.ratio=1")
    assert result.status == 1
    assert result.err == ["error: prune.ratio 1.0 must be in [0, 1): the share of weights that go"]
