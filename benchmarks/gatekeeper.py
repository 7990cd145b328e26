"""Would a first pass that is taught to be unsure where it is wrong make a better cascade?

python -m benchmarks.gatekeeper RUN OUT [--alpha 0.5 0.2] [--epochs 3]

Gatekeeper (Rabanser et al. 2025, https://arxiv.org/abs/2502.19335) fine-tunes the small
network of a cascade with the cross-entropy of the images it has right and, of those it has wrong,
the divergence of its answer from the uniform one:

    loss = alpha * mean(right * CE) + (1 - alpha) * mean(wrong * KL(p || uniform))

A static network is fine-tuned so for each alpha, and once, as the control, with its own loss for as
many epochs. Each is a run of its own in OUT. Printed and written to OUT/gatekeeper.json is what a
second look brings each of them, at equal shares of the held-out images, and how well the confidence
tells right from wrong.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from rich.console import Console
from torch import Tensor

from dqnet.config import EvalConfig, TrainConfig
from dqnet.errors import UserError
from dqnet.evaluation.answered import Pass, load_network
from dqnet.evaluation.choose_cascade import fitted
from dqnet.measurement import percent
from dqnet.network import ScoredOutput
from dqnet.runtime.files import write_json
from dqnet.training import train as loop
from dqnet.training.checkpoint import config_of, load_checkpoint
from dqnet.training.learner import Learner
from dqnet.training.objective import Objective
from dqnet.training.weights import load_own_weights

#: of the held-out images that look twice
SHARES = (0.1, 0.15, 0.2, 0.3)


def gatekeeper(logits: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """The loss of logits ``[N, C]`` and labels ``[N]``."""
    log_p = logits.log_softmax(1)
    right = log_p.argmax(1) == labels
    to_uniform = (log_p.exp() * log_p).sum(1) + math.log(logits.shape[1])
    of_right = F.nll_loss(log_p, labels, reduction="none")
    return torch.where(right, alpha * of_right, (1 - alpha) * to_uniform).mean()


class Unsure(Objective):
    """The loss above, instead of the run's own."""

    alpha: float

    def terms(
        self, output: ScoredOutput, labels: Tensor, teacher_logits: Tensor | None = None
    ) -> dict[str, Tensor]:
        return {"loss": gatekeeper(output.logits.float(), labels, self.alpha)}


def fine_tune(run: Path, folder: Path, alpha: float | None, epochs: int, lr: float) -> None:
    """Trains the network of ``run`` further; ``alpha`` ``None``: with its own loss."""
    path = run / "best.pt" if run.is_dir() else run
    content = load_checkpoint(path)
    config: TrainConfig = deepcopy(config_of(content, path))
    config.trainer.epochs, config.optim.lr, config.trainer.progress = epochs, lr, False

    class Further(Learner):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            load_own_weights(self.model, content, path)
            if alpha is not None:
                self.objective = Unsure(self.model, config.loss)
                self.objective.alpha = alpha

    record = folder / ".hydra" / "config.yaml"
    record.parent.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.structured(config), record)
    with patch.object(loop, "Learner", Further):
        loop.train(config, folder, Console())


def judged(folder: Path) -> dict[str, Any]:
    """Top-1 of a run, the AUC of its confidence, and top-1 with a second look for each share."""
    from sklearn.metrics import roc_auc_score

    network = load_network(str(folder), folder.name, EvalConfig(), Console(quiet=True), None)
    found: dict[str, Any] = {}
    for part, answers in (("held_out", network.held_out), ("test", network.measured)):
        logits, _, labels = answers[None]
        right = logits.argmax(1) == labels
        looks = [
            fitted((Pass(network), Pass(network, "mirror")), (share,), measure=part == "test")[0]
            for share in SHARES
        ]
        found[part] = {
            "top1": percent(right),
            "confidence_auc": float(roc_auc_score(right, logits.softmax(1).amax(1))),
            "second_look": {str(s): own.top1 for s, own in zip(SHARES, looks, strict=True)},
        }
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gatekeeper", description=__doc__.splitlines()[0]
    )
    parser.add_argument("run", type=Path, help="a static network: a run folder or checkpoint")
    parser.add_argument("out", type=Path, help="a folder for the fine-tuned ones")
    parser.add_argument("--alpha", type=float, nargs="+", default=[0.5, 0.2], help="in [0, 1]")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=0.01, help="at the start")
    options = parser.parse_args(arguments)
    results: dict[str, dict[str, Any]] = {}
    try:
        for alpha in (None, *options.alpha):
            name = "control" if alpha is None else f"alpha{alpha:g}"
            folder = options.out / name
            fine_tune(options.run, folder, alpha, options.epochs, options.lr)
            results[name] = judged(folder)
    except UserError as error:
        sys.exit(f"error: {error}")
    for name, parts in results.items():
        for part, own in parts.items():
            looks = ", ".join(f"{top1:.2f} at {s}" for s, top1 in own["second_look"].items())
            auc = own["confidence_auc"]
            print(f"{name}, {part}: {own['top1']:.2f} %, AUC {auc:.3f}, second look {looks}")
    write_json(options.out / "gatekeeper.json", results)


if __name__ == "__main__":
    main()
