"""Runs with Winograd convolutions: training, going on after a stop, evaluation, refusals."""

import json

from tiny import assert_same_run, cut_off

WINOGRAD = ("quant=affine", "quant.widths=[8]", "quant.winograd.tile=2")


def test_a_run_trains_its_scales_and_says_how_often_it_multiplies(run, measure, tmp_path):
    made = run(*WINOGRAD, "optim.lr=0.02")
    state = made.checkpoint("last.pt")["model"]
    name = "backbone.layer1.0.conv1.winograd.input_quantizer.log2_threshold"
    before = run(*WINOGRAD, "trainer.epochs=0").checkpoint("best.pt")["model"]
    assert state[name].shape == (16,) and not state[name].equal(before[name])
    plan = json.loads((made.folder / "plan.json").read_text())["layers"]
    own = [layer for layer in plan if "winograd" in layer]
    # Stages of 8, 4 and 2 pixels, the first convolution of two of which has stride 2.
    assert [layer["multiplications"] for layer in own] == [
        16 * 16 * n for n in (256, 256, 256, 256)
    ]
    counted = made.summary["winograd"]
    assert counted["layers"] == 4
    assert counted["multiplications"] == sum(layer["multiplications"] for layer in own)
    assert "Winograd, 4 layers" in made.text and "(2.25 times as many)" in made.text
    assert measure(made.folder, output=str(tmp_path))["winograd"] == counted


def test_a_killed_run_goes_on_bit_for_bit(run, tmp_path):
    settings = ("quant=lsq", "quant.widths=[4]", "quant.winograd.tile=4",
                "quant.winograd.bits=10", "trainer.epochs=2", "trainer.ema=0.9")  # fmt: skip
    whole = run(*settings)
    cut_off(run, 6, *settings, folder=tmp_path / "cut")
    assert_same_run(whole, run(*settings, folder=tmp_path / "cut"))


def test_with_norms_folded_and_in_bf16(run):
    summary = run(*WINOGRAD, "quant.fold_batch_norm=corrected", "trainer.precision=bf16").summary
    assert summary["winograd"]["layers"] == 4 and summary["loss"] < 10
