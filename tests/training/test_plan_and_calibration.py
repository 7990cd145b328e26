"""Runs that calibrate, with and without training, and runs of a plan."""

import pytest
import torch

from dqnet.errors import UserError
from dqnet.training.build import build_model

LSQ = "quant=lsq", "quant.widths=[4]"
STEP = "backbone.layer1.0.conv1.input_quantizer.step"


def test_post_training_quantization_is_no_epochs_after_calibration(run, config):
    made = run("quant=lsq", "quant.widths=[4]", "trainer.epochs=0", "quant.calibration.images=50")
    state = made.checkpoint("best.pt")["model"]
    chosen = config("quant=lsq", "quant.widths=[4]")
    model = build_model(chosen.model, chosen.quant, 10, (1, 8, 8))
    model.load_state_dict(state)
    flags = {k: v for k, v in state.items() if k.endswith("initialized")}
    assert len(flags) == 2 * 6 and all(v == 1 for v in flags.values())
    assert made.summary["epochs"] == 0 and made.summary["top1"] >= 0
    other = run("quant=lsq", "quant.widths=[4]", "trainer.epochs=0", "quant.calibration.images=9")
    steps = [r.checkpoint("best.pt")["model"] for r in (made, other)]
    name = "backbone.layer1.0.conv1.input_quantizer.step"
    assert not torch.equal(steps[0][name], steps[1][name])


def test_a_run_with_another_plan_does_not_go_on(run, tmp_path):
    made = run("quant.widths=[3]", "trainer.epochs=0")
    file = tmp_path / "plan.json"
    text = (made.folder / "plan.json").read_text()
    file.write_text(text.replace("[3]", "[4]", 1))
    first = run(f"quant.plan={file}", "trainer.epochs=1")
    assert first.summary["target_bits"] > 3
    (first.folder / "summary.json").unlink()
    file.write_text(text.replace("[3]", "[5]", 1))
    with pytest.raises(UserError, match=r"plan has layer 'layer1.0.conv1' static at \(4,\), this"):
        run(f"quant.plan={file}", "trainer.epochs=1", folder=first.folder)


def test_calibration_before_training_sets_what_training_starts_from(run):
    """With a learning rate that moves nothing, steps stay as they were set."""
    still = "trainer.epochs=1", "optim.lr=1e-30", "optim.weight_decay=0"
    calibrated = run(*LSQ, "trainer.epochs=0").checkpoint("best.pt")["model"][STEP]
    before = run(*LSQ, *still, "quant.calibration.before_training=true")
    assert torch.equal(before.checkpoint()["model"][STEP], calibrated)
    first_batch = run(*LSQ, *still).checkpoint()["model"][STEP]
    assert not torch.equal(first_batch, calibrated)


def test_calibration_needs_an_image(run):
    with pytest.raises(UserError, match=r"quant\.calibration\.images 0 must be at least 1"):
        run(*LSQ, "quant.calibration.images=0")
