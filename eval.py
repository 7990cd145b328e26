"""Evaluate a checkpoint: eval.json and per_sample.csv beside it, and a table.

python eval.py checkpoint=runs/default                   # the run's best.pt on its test part
python eval.py checkpoint=runs/default budget=2.6        # cheaper than trained: 2.6 bits on average
python eval.py checkpoint=runs/default curve=true        # every budget: curve.csv and a figure
python eval.py checkpoint=runs/default controls=true     # is the routing instance-aware?
python eval.py checkpoint=runs/default report=html       # a page with every image
python eval.py checkpoint=runs/default report=html logger=wandb    # and its content to W&B
python eval.py checkpoint=runs/static3 cascade.checkpoint=runs/static4    # the unsure ones dearer
python eval.py checkpoint=runs/default budget=2.6 cascade.budget=3.4      # the same, one network
python eval.py checkpoint=runs/default/last.pt output=elsewhere
python eval.py checkpoint=PATH data.root=ELSEWHERE trainer.device=cpu
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from dqnet.cli import job, start, to_object
from dqnet.config import CascadeConfig, EvalConfig
from dqnet.engine.evaluate_cascade import evaluate_cascade
from dqnet.engine.evaluate_checkpoint import evaluate_checkpoint


@hydra.main(version_base="1.3", config_path="conf", config_name="eval")
def main(config: DictConfig) -> None:
    """Evaluates a network, or a cascade if there is a second pass."""

    def evaluate() -> None:
        wanted = to_object(EvalConfig, config)
        is_cascade = wanted.cascade != CascadeConfig()
        (evaluate_cascade if is_cascade else evaluate_checkpoint)(wanted)

    job(evaluate)


if __name__ == "__main__":
    start(main, Path(__file__).resolve().parent / "conf", "eval", sweeps=False)
