"""Can a router pay? What the features of one network know of where another one does better.

python -m dqnet.evaluation.headroom runs/lsq3 runs/lsq4

A router that spends more on an image has to know early that this image gains by it: that the more
expensive network B is right where the cheap one, A, is wrong. Here a linear probe looks for that in
what A computes: the pooled output of every stage, and the logits (linear probes: Alain and Bengio
2016, https://arxiv.org/abs/1610.01644). Probes are trained and judged on held-out images, each on
four fifths and the other fifth. Written are headroom.json and the figure.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from dqnet.cascade import Cascade
from dqnet.config import EvalConfig
from dqnet.errors import UserError
from dqnet.evaluation.trained import Trained, load_trained
from dqnet.measurement import evaluate, percent
from dqnet.network import QuantizedModel
from dqnet.runtime.files import write_atomically, write_json
from dqnet.split import listed_stages
from dqnet.standard_output import take_every_character
from dqnet.training.tables import print_line

#: of the images that go to the second network
SHARES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
FOLDS = 5
#: sorted log-probabilities that the probe of the logits sees
CLASSES = 10


@contextmanager
def pooled(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Collects means and standard deviations over positions of what stages return meanwhile.

    Yields:
        For each stage that the model lists a list, which gets ``[B, 2C]`` float32 on the CPU from
        every batch.
    """
    backbone = model.backbone if isinstance(model, QuantizedModel) else model
    modules = dict(backbone.named_modules())
    names = [name for name in listed_stages(backbone) if name and name in modules]
    found: dict[str, list[Tensor]] = {name: [] for name in names}

    def hook(name: str) -> Any:
        def keep(module: nn.Module, args: Any, output: Tensor) -> None:
            maps = output.float().flatten(2) if output.ndim == 4 else output.float().mT
            found[name].append(torch.cat([maps.mean(2), maps.std(2, correction=0)], 1).cpu())

        return keep

    hooks = [modules[name].register_forward_hook(hook(name)) for name in found]
    try:
        yield found
    finally:
        for handle in hooks:
            handle.remove()


def probe(features: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Scores ``[N]`` of a logistic regression, each image's by one that has not seen it.

    Args:
        features: float ``[N, F]``.
        target: bool ``[N]``, with at least ``FOLDS`` images of either kind.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    return cross_val_predict(model, features, target, cv=folds, method="decision_function")


def headroom_of(scores: np.ndarray, a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """What routing by ``scores`` gains, the highest first.

    Args:
        scores: float ``[N]``.
        a, b: bool ``[N]``: where the cheap network is right, and the other one.

    Returns:
        ``auc`` of the scores for "B right and A wrong", and for each of ``SHARES`` the ``gain`` in
        points of top-1 over A if so many images go to B, and ``captured``, that over the gain of
        the best choice of as many.
    """
    from sklearn.metrics import roc_auc_score

    order = np.argsort(-scores, kind="stable")
    difference = 100 * (b.astype(float) - a)
    best = np.sort(difference)[::-1]
    points = []
    for share in SHARES:
        count = round(share * len(scores))
        gain, possible = (
            values[:count].sum() / len(scores) for values in (difference[order], best)
        )
        points.append(
            {"share": share, "gain": gain, "captured": gain / possible if possible else 0}
        )
    return {"auc": float(roc_auc_score(b & ~a, scores)), "points": points}


def measure_headroom(a: Trained, b: Trained) -> dict[str, Any]:
    """The content of ``headroom.json``, from the calibration images of both networks.

    Raises:
        UserError: if one is a cascade, they are not the same images, or too few tell the networks
            apart.
    """
    for trained in (a, b):
        if isinstance(trained.model, Cascade):
            raise UserError(f"{trained.path} is a cascade: headroom is between two networks")
    with pooled(a.model) as features:
        first = evaluate(a.model, a.data.calibration, *a.how, keep_logits=True)
    second = evaluate(b.model, b.data.calibration, *b.how)
    if not torch.equal(first.labels, second.labels):
        raise UserError(f"{a.path} and {b.path} have different held-out images")
    right, right_b = first.correct.numpy(), second.correct.numpy()
    target = right_b & ~right
    if min(target.sum(), (~target).sum()) < FOLDS:
        raise UserError(
            f"of {len(target)} held-out images {target.sum()} are right with {b.path} and wrong "
            f"with {a.path}: a probe needs {FOLDS} of them, and as many others"
        )
    known = {name: torch.cat(parts).numpy() for name, parts in features.items()}
    log_p = first.logits.log_softmax(1)
    known["logits"] = log_p.sort(1, descending=True).values[:, :CLASSES].numpy()
    scores = {name: probe(values, target) for name, values in known.items()}
    scores["confidence"] = -first.confidence.numpy()
    return {
        "a": _described(a),
        "b": _described(b),
        "images": len(target),
        "split": a.calibration_part,
        "top1": {"a": percent(first.correct), "b": percent(second.correct)},
        "b_alone_right": 100 * float(target.mean()),
        "a_alone_right": 100 * float((right & ~right_b).mean()),
        "places": {name: headroom_of(own, right, right_b) for name, own in scores.items()},
    }


def _described(trained: Trained) -> dict[str, str]:
    return {"checkpoint": str(trained.path), "checkpoint_sha256": trained.sha256}


def print_headroom(console: Console, results: Mapping[str, Any]) -> None:
    """A row per place: the AUC, then the gain at every share and what it is of the possible one."""
    title = f"gain in points of top-1 (of the possible gain), {results['images']} held-out images"
    table = Table(title=title, title_justify="left")
    table.add_column("known from", no_wrap=True)
    for heading in ("AUC", *(f"{share:.0%} to B" for share in SHARES)):
        table.add_column(heading, justify="right")
    for name, place in results["places"].items():
        cells = [f"{p['gain']:+.2f} ({p['captured']:.0%})" for p in place["points"]]
        table.add_row(name, f"{place['auc']:.3f}", *cells)
    console.print(table)
    top1 = results["top1"]
    line = f"A {top1['a']:.2f} %, B {top1['b']:.2f} %; B alone is right for "
    line += f"{results['b_alone_right']:.2f} %, A alone for {results['a_alone_right']:.2f} %"
    print_line(console, line)


def draw_headroom(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """``headroom.png`` and ``.pdf``: the gain against the share of images that go to B."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axes = figure.subplots()
    shares = [100 * share for share in SHARES]
    for name, place in results["places"].items():
        gains = [point["gain"] for point in place["points"]]
        axes.plot(shares, gains, "o-", ms=4, label=f"{name}, AUC {place['auc']:.2f}")
    difference = results["top1"]["b"] - results["top1"]["a"]
    chance = [share / 100 * difference for share in shares]
    axes.plot(shares, chance, ":", color="black", label="by chance")
    axes.set(xlabel="images that go to B (%)", ylabel="gain over A (points of top-1)")
    axes.legend(frameon=False, fontsize=8)
    paths = [folder / f"headroom.{kind}" for kind in ("png", "pdf")]
    for path in paths:
        kind = path.suffix[1:]
        write_atomically(path, lambda file, kind=kind: figure.savefig(file, format=kind, dpi=150))
    return paths


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m dqnet.evaluation.headroom", description=__doc__.splitlines()[0]
    )
    parser.add_argument("a", metavar="RUN_A", help="the cheap network: a run folder or checkpoint")
    parser.add_argument("b", metavar="RUN_B", help="the one that some images would go to")
    parser.add_argument("--data", metavar="ROOT", help="where the images are now")
    parser.add_argument("--out", type=Path, help="a folder for the files (default: RUN_A's)")
    options = parser.parse_args(arguments)
    take_every_character()
    console = Console()
    config = EvalConfig()
    config.data.root = options.data
    try:
        a = load_trained(options.a, config, console)
        b = load_trained(options.b, config, console, like=a)
        results = measure_headroom(a, b)
        folder = options.out or a.path.parent
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "headroom.json", results)
        written = [folder / "headroom.json", *draw_headroom(results, folder)]
    except UserError as error:
        sys.exit(f"error: {error}")
    print_headroom(console, results)
    print_line(console, f"written: {', '.join(map(str, written))}")


if __name__ == "__main__":
    main()
