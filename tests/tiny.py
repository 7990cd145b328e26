"""A network and a comparison that make a whole training run take a fraction of a second."""

import pytest
import torch
from timm.models import build_model_with_cfg, register_model

from dqnet.models.resnet_cifar import ResNetCifar
from dqnet.training.learner import Learner

#: routed layers of resnet8_cifar
ROUTED = ("layer2.0.conv1", "layer2.0.conv2", "layer3.0.conv1", "layer3.0.conv2")
STATIC = ("layer1.0.conv1", "layer1.0.conv2")

#: everything that has a state of its own: noise, dropout, annealing, averages, learned steps
RICH = {
    "dorefa": (
        "trainer.epochs=3",
        "data.val_fraction=0.25",
        "trainer.ema=0.9",
        "quant.controller.dropout=0.2",
        "quant.controller.tau_end=0.5",
        "optim.warmup_epochs=0.5",
    ),
    "lsq": ("trainer.epochs=3", "quant=lsq", "optim=adamw"),
}


@register_model
def resnet8_cifar(pretrained=False, **kwargs):
    return build_model_with_cfg(ResNetCifar, "resnet20_cifar", pretrained, blocks=1, **kwargs)


def same(a, b):
    """Whether two nested containers of tensors and plain values are equal, bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


def without_time(figures):
    return {key: value for key, value in figures.items() if key != "seconds"}


def assert_same_run(a, b, but_for=()):
    """Checkpoints, metrics and summary are equal in everything but time and some settings."""
    assert [without_time(m) for m in a.metrics] == [without_time(m) for m in b.metrics]
    assert without_time(a.summary) == without_time(b.summary)
    for name in ("last.pt", "best.pt"):
        ours, theirs = (without_time(r.checkpoint(name)) for r in (a, b))
        for key in ours.keys() | theirs.keys():
            assert key in but_for or same(ours[key], theirs[key]), (name, key)


def cut_off(run, update, *settings, folder):
    """A run that ends like a killed one before an update of its weights."""
    step = Learner.step

    def interrupted(learner, number, *batch):
        if number == update:
            raise KeyboardInterrupt
        return step(learner, number, *batch)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Learner, "step", interrupted)
        run(*settings, folder=folder)
