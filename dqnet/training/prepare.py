"""What a run does before its first step."""

from __future__ import annotations

from dqnet.calibration import calibrate
from dqnet.network import QuantizedModel
from dqnet.runtime.files import write_text
from dqnet.training.run_state import RunState


def prepare(run: RunState) -> None:
    """Writes ``plan.json`` and calibrates; without epochs the network is then as it will be."""
    learner, epochs = run.learner, run.config.trainer.epochs
    model = learner.model
    if isinstance(model, QuantizedModel) and run.is_new:
        write_text(run.folder / "plan.json", model.plan.dumps())
        if epochs == 0 or run.config.quant.calibration.before_training:
            calibrate(model, (learner.device.images(images) for images, _ in run.data.observed))
    if epochs == 0:
        if learner.ema is not None:
            learner.ema.set(model)
        run.best = {"epoch": None, "rank": None}
        run.save_best()
        run.save()
