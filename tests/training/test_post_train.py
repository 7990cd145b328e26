"""Runs without training: folded, equalized, rounded and corrected networks, and going on."""

import pytest
import torch

from dqnet.errors import UserError
from dqnet.training import post_train

PTQ = (
    "quant=affine", "quant.widths=[w3a8]", "trainer.epochs=0", "quant.first_last=8",
    "quant.calibration.images=40",
)  # fmt: skip
FOLDED = "quant.fold_batch_norm=true"
ADAROUND = (*PTQ, FOLDED, "quant.post_training.adaround=20")


def test_a_network_without_batch_norms_is_saved_and_measured_again(run, measure):
    made = run(*ADAROUND, "quant.post_training.bias_correction=true")
    names = made.checkpoint("best.pt")["model"]
    assert not any("running_mean" in name for name in names)
    assert "backbone.conv1.bias" in names
    again = measure(made.folder)
    for key in ("top1", "loss", "bit_flops"):
        assert again[key] == made.summary[key]
    assert not (made.folder / post_train.UNFINISHED).exists()


def test_rounding_and_correction_change_what_was_calibrated(run):
    plain = run(*PTQ, FOLDED).checkpoint("best.pt")["model"]
    for option, kind in (("adaround=20", "weight"), ("bias_correction=true", "bias")):
        other = run(*PTQ, FOLDED, f"quant.post_training.{option}").checkpoint("best.pt")["model"]
        changed = {name for name, value in plain.items() if not torch.equal(other[name], value)}
        assert changed == {name for name in plain if name.endswith(f".{kind}")}


def test_equalized_networks_are_rebuilt_for_evaluation(run, measure):
    small = "model.name=mobilenetv2_050_cifar", "data.size=16"
    made = run(*PTQ, FOLDED, *small, "quant.post_training.equalize=true")
    assert measure(made.folder)["loss"] == made.summary["loss"]
    assert made.summary["loss"] != run(*PTQ, FOLDED, *small).summary["loss"]


def test_equalization_asks_for_folded_norms(run):
    with pytest.raises(UserError, match="fold batch norms first"):
        run(*PTQ, "quant.post_training.equalize=true")


def test_a_run_that_was_stopped_while_rounding_goes_on_where_it_was(run, monkeypatch, tmp_path):
    whole = run(*ADAROUND).checkpoint("best.pt")["model"]
    folder, rounded = tmp_path / "run", []
    monkeypatch.setattr(post_train, "SECONDS", -1.0)  # written after every layer
    original = post_train.adaround

    def stopping(*args, done, known, **kwargs):
        known_before = set(known)

        def noted(name):
            done(name)
            if name not in known_before:
                rounded.append(name)
            if len(rounded) == 3:
                raise KeyboardInterrupt

        return original(*args, done=noted, known=known, **kwargs)

    monkeypatch.setattr(post_train, "adaround", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(*ADAROUND, folder=folder)
    rounded += [None]  # so that it does not stop again
    again = run(*ADAROUND, folder=folder).checkpoint("best.pt")["model"]
    assert len(rounded) == len(set(rounded)) > 4  # no layer twice
    assert all(torch.equal(again[name], value) for name, value in whole.items())


def test_what_was_rounded_with_other_settings_is_not_gone_on_with(run, monkeypatch, tmp_path):
    folder = tmp_path / "run"
    monkeypatch.setattr(post_train, "SECONDS", -1.0)
    monkeypatch.setattr(post_train, "remove", lambda path: None)  # as if it were killed here
    monkeypatch.setattr(post_train, "correct_biases", lambda *args: 1 / 0)
    correct = "quant.post_training.bias_correction=true"
    with pytest.raises(ZeroDivisionError):
        run(*ADAROUND, correct, folder=folder)
    with pytest.raises(UserError, match=r"holds a run with quant\.post_training\.adaround=20, not"):
        run(*ADAROUND, correct, "quant.post_training.adaround=10", folder=folder)
    with pytest.raises(ZeroDivisionError):  # where it runs is not part of what it is
        run(*ADAROUND, correct, "trainer.checkpoint_minutes=3", folder=folder)
