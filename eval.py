"""Evaluate a checkpoint: eval.json and per_sample.csv beside it, and a table.

python eval.py checkpoint=runs/default                   # the run's best.pt on its test part
python eval.py checkpoint=runs/default budget=2.6        # cheaper than trained: 2.6 bits on average
python eval.py checkpoint=runs/default curve=true        # every budget: curve.csv and a figure
python eval.py checkpoint=runs/default controls=true     # is the routing instance-aware?
python eval.py checkpoint=runs/default report=html       # a page with every image
python eval.py checkpoint=runs/default report=html logger=wandb    # and its content to W&B
python eval.py checkpoint=runs/default/last.pt output=elsewhere
python eval.py checkpoint=PATH data.root=ELSEWHERE trainer.device=cpu
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from dqnet.cli import job, start, to_object
from dqnet.config import EvalConfig
from dqnet.engine.evaluate_checkpoint import evaluate_checkpoint


@hydra.main(version_base="1.3", config_path="conf", config_name="eval")
def main(config: DictConfig) -> float:
    """Evaluates and returns the top-1 accuracy."""
    return job(lambda: evaluate_checkpoint(to_object(EvalConfig, config)))["top1"]


if __name__ == "__main__":
    start(main, Path(__file__).resolve().parent / "conf", "eval", sweeps=False)
