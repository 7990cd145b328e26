"""Evaluate a checkpoint: eval.json and per_sample.csv beside it, and a table.

python eval.py checkpoint=runs/default                   # the run's best.pt on its test part
python eval.py checkpoint=runs/default budget=2.6        # cheaper than trained: 2.6 bits on average
python eval.py checkpoint=runs/default curve=true        # every budget: curve.csv and a figure
python eval.py checkpoint=runs/default controls=true     # is the routing instance-aware?
python eval.py checkpoint=runs/static3 sparsity=true     # energy on hardware that skips zeros
python eval.py checkpoint=runs/default report=html       # a page with every image
python eval.py checkpoint=runs/default report=html logger=wandb    # and its content to W&B
python eval.py checkpoint=runs/default export=onnx       # model.onnx for other runtimes
python eval.py checkpoint=runs/static3 cascade.checkpoint=runs/static4    # unsure ones again
python eval.py checkpoint=runs/default budget=2.6 cascade.budget=3.4      # the same, one network
python eval.py checkpoint=runs/static3 cascade.view=mirror cascade.share=0.15  # a second look
python eval.py checkpoint=runs/static3/cascade report=html controls=true      # as a network
python eval.py checkpoint=runs/default/last.pt output=elsewhere
python eval.py checkpoint=PATH data.root=ELSEWHERE trainer.device=cpu
"""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig
from rich.console import Console

from dqnet.cli import job, start, to_object
from dqnet.config import CascadeConfig, EvalConfig
from dqnet.errors import unknown_name
from dqnet.evaluation.evaluate_cascade import evaluate_cascade
from dqnet.evaluation.evaluate_checkpoint import evaluate_checkpoint
from dqnet.evaluation.tables import print_evaluation
from dqnet.export.agreement import agreement_line, check_export, check_form, export_trained
from dqnet.report.runs import read_run
from dqnet.training.logging import start_wandb
from dqnet.training.tables import print_line

REPORTS = ("none", "html")


def evaluate_and_report(config: EvalConfig, console: Console | None = None) -> dict[str, Any]:
    """Measures a network, then draws from the files of the evaluation; returns ``eval.json``.

    Args:
        config: what to measure, and whether to draw and log it.
        console: where the tables are printed.
    """
    console = console or Console()
    if config.report.name not in REPORTS:
        raise unknown_name("report.name", config.report.name, REPORTS)
    baselines = [Path(run) for run in config.report.baselines]
    for baseline in baselines:  # not after minutes of evaluation
        read_run(baseline)
    check_export(config.export)
    accept = partial(check_form, config=config.export)
    evaluated = evaluate_checkpoint(config, console, accept)
    folder, results = evaluated.folder, evaluated.results
    written = [folder / "eval.json", folder / "per_sample.csv"]
    # The parts that draw take a second to load.
    if config.curve:
        from dqnet.report.page.figures.trade_off import write_curve

        written += [folder / "curve.csv", *write_curve(folder)]
    if config.report.name == "html":
        from dqnet.report.page.html import write_report

        written += [folder / "samples.npz", write_report(folder, baselines)]
    if config.export.name != "none":
        agreement = export_trained(evaluated.trained, config.export, folder)
        written += [folder / "model.onnx", folder / "export.json"]
        print_line(console, agreement_line(agreement))
    if config.logger.name == "wandb":
        # A run that was trained with W&B goes on as the same run.
        trained = evaluated.trained
        run = start_wandb(
            config.logger, asdict(trained.config), folder, trained.content["wandb_id"]
        )
        if config.report.name == "html":
            from dqnet.report.page.wandb import log_report

            log_report(run, folder)
        run.summary.update({"eval": results})
        run.finish()
    print_evaluation(console, results, evaluated.points)
    print_line(console, f"written: {', '.join(map(str, written))}")
    return results


@hydra.main(version_base="1.3", config_path="conf", config_name="eval")
def main(config: DictConfig) -> None:
    """Evaluates a network, or a cascade if there is a second pass."""

    def evaluate() -> None:
        wanted = to_object(EvalConfig, config)
        is_cascade = wanted.cascade != CascadeConfig()
        (evaluate_cascade if is_cascade else evaluate_and_report)(wanted)

    job(evaluate)


if __name__ == "__main__":
    start(main, Path(__file__).resolve().parent / "conf", "eval", sweeps=False)
