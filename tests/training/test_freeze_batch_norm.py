"""Batch norms keep their statistics after a share of the training, and folding is a setting."""

import pytest
import torch
from torch import nn

from dqnet.errors import UserError
from dqnet.training.learner import freeze_batch_norms

EPOCHS, UPDATES = 2, 8  # four batches each


@pytest.mark.parametrize(("share", "tracked"), [("null", 8), ("0.5", 4), ("0.7", 6), ("0", 0)])
def test_statistics_stop_after_the_share(run, tmp_path, share, tracked):
    settings = [f"trainer.epochs={EPOCHS}", f"quant.freeze_batch_norm={share}", "quant.widths=[4]"]
    settings += ["quant=lsq", "quant.fold_batch_norm=corrected"]
    state = run(*settings, folder=tmp_path / "run").checkpoint()["model"]
    counts = {n: v.item() for n, v in state.items() if n.endswith("num_batches_tracked")}
    assert len(counts) == 7
    assert set(counts.values()) == {tracked}


def test_frozen_norms_still_learn_scale_and_shift():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train()
    freeze_batch_norms(model, 0.5, 0.49)
    assert model[1].training
    freeze_batch_norms(model, 0.5, 0.5)
    assert not model[1].training
    assert model[0].training
    before = model[1].running_mean.clone()
    model(torch.randn(4, 1, 5, 5)).sum().backward()
    assert torch.equal(model[1].running_mean, before)
    assert model[1].weight.grad is not None


def test_a_share_out_of_range(run, tmp_path):
    with pytest.raises(UserError, match=r"quant\.freeze_batch_norm 1\.5 must be in \[0, 1\]"):
        run("quant.freeze_batch_norm=1.5", folder=tmp_path / "run")
