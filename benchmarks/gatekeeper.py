"""Would a first pass that is taught to be unsure where it is wrong make a better cascade?

python -m benchmarks.gatekeeper RUN OUT [--alpha 0.5 0.2] [--epochs 3]

Gatekeeper (Rabanser et al. 2025, https://arxiv.org/abs/2502.19335) fine-tunes the small
network of a cascade with the cross-entropy of the images it has right and, of those it has wrong,
the divergence of its answer from the uniform one:

    loss = alpha * mean(right * CE) + (1 - alpha) * mean(wrong * KL(p || uniform))

A static network is fine-tuned so for each alpha, and once, as the control, with its own loss for as
many epochs. Each is a run of its own in OUT, to be judged by

python -m dqnet.evaluation.choose_cascade OUT/control OUT/alpha0.5 RUN_OF_MORE_BITS --out FOLDER
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

from dqnet.config import TrainConfig
from dqnet.errors import UserError
from dqnet.network import ScoredOutput
from dqnet.training import train as loop
from dqnet.training.checkpoint import config_of, load_checkpoint
from dqnet.training.learner import Learner
from dqnet.training.objective import Objective
from dqnet.training.weights import load_own_weights


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
    try:
        for alpha in (None, *options.alpha):
            name = "control" if alpha is None else f"alpha{alpha:g}"
            fine_tune(options.run, options.out / name, alpha, options.epochs, options.lr)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
