"""Weights of another implementation: the same tensors in the same order under other names."""

import importlib
import sys
from collections import OrderedDict

import pytest
import torch
from torch import nn

from dqnet.errors import UserError
from dqnet.training.weights import load_float_weights


def network(**layers):
    return nn.Sequential(OrderedDict(layers))


def ours():
    return network(stem=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4), head=nn.Conv2d(4, 4, 1))


def theirs():
    net = network(_conv=nn.Conv2d(3, 4, 3), _bn0=nn.BatchNorm2d(4), _fc=nn.Conv2d(4, 4, 1))
    net._bn0.running_mean.normal_()
    return net


def saved(net, path):
    torch.save(net.state_dict(), path)
    return path


def test_other_names_load_by_order_and_compute_the_same(tmp_path):
    source, target = theirs().eval(), ours().eval()
    load_float_weights(target, saved(source, tmp_path / "w.pt"), by="order")
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(target(x), source(x))


def test_an_old_checkpoint_without_counters_loads_too(tmp_path):
    source, target = theirs().eval(), ours().eval()
    state = {k: v for k, v in source.state_dict().items() if "num_batches" not in k}
    torch.save(state, tmp_path / "w.pt")
    load_float_weights(target, tmp_path / "w.pt", by="order")
    assert torch.equal(target.norm.running_mean, source._bn0.running_mean)


def test_names_win_over_places(tmp_path):
    source, target = ours().eval(), ours().eval()
    state = source.state_dict()
    torch.save(dict(reversed(state.items())), tmp_path / "w.pt")
    load_float_weights(target, tmp_path / "w.pt", by="order")
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(target(x), source(x))


def test_other_names_are_refused_unless_asked_for(tmp_path):
    with pytest.raises(UserError, match=r"another model.*load it with model\.checkpoint_by=order$"):
        load_float_weights(ours(), saved(theirs(), tmp_path / "w.pt"))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (network(a=nn.Conv2d(3, 4, 3)), "it has 2 tensors, the model 8"),
        (  # a convolution's bias in the place of a norm's weight, and so on: shapes are the same
            network(a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 4, 1), c=nn.BatchNorm2d(4)),
            r"'b.weight' \[4, 4, 1, 1\] stands where the model has 'norm.weight' \[4\]",
        ),
        (
            network(a=nn.Conv2d(3, 4, 5), b=nn.BatchNorm2d(4), c=nn.Conv2d(4, 4, 1)),
            r"'a.weight' \[4, 3, 5, 5\] stands where the model has 'stem.weight' \[4, 3, 3, 3\]",
        ),
        (  # a name that both have, elsewhere
            network(stem=nn.Conv2d(3, 4, 3), head=nn.BatchNorm2d(4), norm=nn.Conv2d(4, 4, 1)),
            "'head.weight' .* stands where the model has 'norm.weight'",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, other, message):
    target = ours()
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(UserError, match=message):
        load_float_weights(target, saved(other, tmp_path / "w.pt"), by="order")
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())


def test_tensors_of_one_module_do_not_go_to_two(tmp_path):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))

    target = network(a=Shared(), b=Shared())
    swapped = {"x.weight": torch.ones(4), "y.bias": torch.ones(4)}
    swapped |= {"y.weight": torch.ones(4), "x.bias": torch.ones(4)}
    torch.save(swapped, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"'y.bias' \[4\] stands where the model has 'a.bias'"):
        load_float_weights(target, tmp_path / "w.pt", by="order")


def test_an_unknown_way_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"unknown model\.checkpoint_by 'ordr'; did you mean 'ord"):
        load_float_weights(ours(), saved(theirs(), tmp_path / "w.pt"), by="ordr")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package whose code must not run."""
    folder = tmp_path / "some_weights"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return folder


def test_weights_load_from_inside_a_package_whose_code_does_not_run(package):
    source, target = ours(), ours()
    (package / "models").mkdir()
    saved(source, package / "models" / "w.pth")
    load_float_weights(target, "package:some_weights/models/w.pth")
    assert torch.equal(target.stem.weight, source.stem.weight)
    assert "some_weights" not in sys.modules


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("package:no_such_weights/w.pth", r"not installed: pip install no-such-weights$"),
        ("package:some_weights/other.pth", "checkpoint .*some_weights/other.pth does not exist"),
        ("package:os.path/w.pth", "'os.path' is not the name of a package"),
        ("package:/etc/w.pth", "'' is not the name of a package"),
    ],
)
def test_files_that_are_not_in_a_package(package, path, message):
    with pytest.raises(UserError, match=message):
        load_float_weights(ours(), path)
