"""Networks of one to four bits that learn from scratch."""

import pytest
import tiny
from tiny import assert_same_run, cut_off

SCRATCH = (
    "quant=qnn",
    "+model.args.act_layer=identity",
    "optim=adamw",
    "optim.lr=0.05",
    "optim.weight_decay=0",
    "data.batch_size=30",
)


@pytest.mark.parametrize("width", ["1", "w1a2", "2", "4"])
def test_a_network_learns_from_scratch(run, width):
    """Guessing has 10 % of the digits right."""
    result = run(*SCRATCH, f"quant.widths=[{width}]", "trainer.epochs=10")
    assert result.summary["top1"] >= 50
    state = result.checkpoint()["model"]
    weights = [state[f"backbone.{name}.weight"] for name in (*tiny.STATIC, *tiny.ROUTED)]
    assert all(weight.abs().max() <= 1 for weight in weights)
    assert any((weight.abs() == 1).any() for weight in weights)  # some were clipped


def test_gradients_of_six_bits_train_a_network_and_change_what_it_learns(run):
    settings = (*SCRATCH, "quant.widths=[w1a2]", "trainer.epochs=10")
    rounded, plain = run(*settings, "quant.gradient_bits=6"), run(*settings)
    assert rounded.summary["top1"] >= 50
    assert rounded.metrics[0]["train_loss"] != plain.metrics[0]["train_loss"]


def test_a_run_that_is_cut_off_ends_like_one_that_is_not(run, tmp_path):
    """Between two clips, and with gradients that are rounded at random."""
    settings = (
        *SCRATCH,
        "quant.widths=[1]",
        "quant.gradient_bits=6",
        "trainer.epochs=2",
        "trainer.checkpoint_steps=3",
    )
    cut_off(run, 14, *settings, folder=tmp_path / "run")
    assert_same_run(run(*settings, folder=tmp_path / "run"), run(*settings))
