"""Which of some trained networks, alone or as a cascade, is best at the cost of a static one?

python -m dqnet.evaluation.choose_cascade runs/lsq2 runs/lsq3 runs/lsq4 --out results/NAME

Every static network is a baseline. For each kind of rival (another network alone, a second look, a
pass at more bits, both, three passes) many are fitted on held-out images, and two are chosen by
those images alone: the most accurate one of no more cost than the baseline, and the cheapest one of
no less accuracy. What is reported of them is measured on the test images. Networks of a baseline
have its quantizer; where one was trained with several seeds, that of the baseline is taken, or else
the lowest. Written are choices.json, choices.csv, choices.md and the figure.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from dqnet.cascade import Cascade
from dqnet.config import EvalConfig
from dqnet.costs.size import weight_bytes
from dqnet.errors import UserError
from dqnet.evaluation.answered import Network, Pass, load_network, names_of
from dqnet.evaluation.choices_table import BEST, choices_table, print_choices, write_choices
from dqnet.evaluation.controls import gains
from dqnet.evaluation.paths import Paths
from dqnet.runtime.files import write_json
from dqnet.standard_output import take_every_character
from dqnet.training.tables import print_line

#: of the held-out images that get a further pass
SHARES = (0.03, 0.05, 0.08, 0.1, 0.12, 0.15, 0.18, 0.2, 0.23, 0.26, 0.3, 0.35, 0.4, 0.5)
#: the same for each of two further passes
FEW_SHARES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
#: a second opinion of the same bits, which is no rival
CONTROL = "another seed"
#: by how much a dynamic network alone may cost more: it was trained towards the cost, not to it
DYNAMIC_EXCESS = 0.02


@dataclass(frozen=True)
class Tried:
    """A cascade, or one network, fitted on held-out images.

    Attributes:
        passes: one or more.
        shares: of the held-out images that get each further one.
        top1, cost: of the held-out images: per cent, and Bit-FLOPs of the mean one.
    """

    passes: tuple[Pass, ...]
    shares: tuple[float, ...]
    top1: float
    cost: float


def rivals(baseline: Network, networks: Sequence[Network]) -> dict[str, list[tuple[Pass, ...]]]:
    """What may be better than a static network, by kind: the passes of each.

    Args:
        baseline: a static network.
        networks: all there are.
    """
    same = [other for other in networks if other.quantizer == baseline.quantizer]
    pool = [baseline]
    for other in sorted(same, key=lambda own: (own.seed != baseline.seed, own.seed)):
        if not any(other.like(own) for own in pool):
            pool.append(other)
    pool.sort(key=lambda own: own.cost)
    static = [own for own in pool if own.is_static]
    dynamic = [own for own in pool if not own.is_static]
    first = [own for own in static if own.cost <= baseline.cost]
    pairs = [(a, b) for a in first for b in static if a.cost < b.cost]
    twins = [(a, b) for a in first for b in same if a is not b and a.like(b)]
    found = {
        "another network": [(Pass(own),) for own in static if own is not baseline],
        "dynamic": [(Pass(own),) for own in dynamic],
        CONTROL: [(Pass(a), Pass(b)) for a, b in twins],
        "more bits": [(Pass(a), Pass(b)) for a, b in pairs],
    }
    if "mirror" in baseline.views:
        found |= {
            "second look": [(Pass(own), Pass(own, "mirror")) for own in first],
            "dynamic, mirrored": [(Pass(own), Pass(own, "mirror")) for own in dynamic],
            "more bits, mirrored": [(Pass(a), Pass(b, "mirror")) for a, b in pairs],
            "three passes": [
                (Pass(a), second, Pass(b, "mirror"))
                for a, b in pairs
                for second in (Pass(a, "mirror"), Pass(b))
            ],
        }
    return {kind: passes for kind, passes in found.items() if passes}


def fitted(
    passes: Sequence[Pass], shares: Sequence[float], measure: bool = False
) -> tuple[Paths, list[Cascade]]:
    """A cascade of passes, fitted on held-out images.

    Args:
        passes: one or more.
        shares: of the held-out images that get each further one.
        measure: whether to answer the measured images instead of the held-out ones.
    """
    begun = passes[0].network
    module: Any = begun.model
    fitting = Paths.of_pass(*begun.held_out[None])
    reported = Paths.of_pass(*begun.measured[None])
    cascades = []
    for (network, view), share in zip(passes[1:], shares, strict=True):
        cascade = Cascade(module, network.model, view=view)
        seen = network.held_out[view]
        cascade.fit_answers(fitting.answer, seen.logits, seen.labels, share)
        fitting = fitting.then(cascade, seen.logits, seen.costs)
        if measure:
            seen = network.measured[view]
            reported = reported.then(cascade, seen.logits, seen.costs)
        cascades.append(cascade)
        module = cascade
    return reported if measure else fitting, cascades


def try_out(passes: tuple[Pass, ...], shares: tuple[float, ...]) -> Tried:
    """Fits a cascade to held-out images, which judge it, too."""
    paths, _ = fitted(passes, shares)
    return Tried(passes, shares, paths.top1, paths.cost)


def try_shares(passes: tuple[Pass, ...]) -> Iterator[Tried]:
    """One for every share of images that get a further pass."""
    grids: dict[int, Iterable[tuple[float, ...]]] = {
        1: [()],
        2: [(share,) for share in SHARES],
        3: [(first, second) for first in FEW_SHARES for second in FEW_SHARES],
    }
    return (try_out(passes, shares) for shares in grids[len(passes)])


def reported(chosen: Tried, baseline: Network) -> dict[str, Any]:
    """What is measured of a choice, beside a baseline; costs are relative to the baseline's."""
    paths, cascades = fitted(chosen.passes, chosen.shares, measure=True)
    own = Paths.of_pass(*baseline.measured[None])
    no_losses = torch.zeros(len(own.labels), dtype=torch.float64)
    correct = paths.correct.double()
    difference, _ = gains(correct - own.correct.double(), no_losses)
    gain = None
    if cascades:
        gain, _ = gains(correct - paths.shuffled_correct(), no_losses)
    networks = {id(own.network): own.network.model for own in chosen.passes}
    sizes = [weight_bytes(model) for model in networks.values()]
    held_out_cost = baseline.held_out[None].costs.mean().item()
    return {
        "passes": list(map(str, chosen.passes)),
        "shares": chosen.shares,
        "held_out": {"top1": chosen.top1, "relative_cost": chosen.cost / held_out_cost},
        "top1": paths.top1,
        "relative_cost": paths.cost / baseline.cost,
        "worst_relative_cost": paths.worst_cost / baseline.cost,
        "more_passes": paths.more_passes,
        "difference": difference,
        "instance_gain": gain,
        "weight_bytes": None if None in sizes else sum(sizes),
        "cascades": [cascade.described() for cascade in cascades],
    }


def choices(
    baseline: Network, networks: Sequence[Network], advance: Callable[[], Any]
) -> dict[str, Any]:
    """What ``choices.json`` says of one static network.

    Args:
        baseline: the network.
        networks: all there are.
        advance: is called after each rival.
    """
    held_out = Paths.of_pass(*baseline.held_out[None])
    kinds = {}
    for kind, candidates in rivals(baseline, networks).items():
        found = []
        for passes in candidates:
            found += try_shares(passes)
            advance()
        most = held_out.cost * (1 + (DYNAMIC_EXCESS if kind == "dynamic" else 1e-9))
        affordable = [own for own in found if own.cost <= most]
        accurate = [own for own in found if own.top1 >= held_out.top1]
        best = max(affordable, key=lambda own: own.top1, default=None)
        cheapest = min(accurate, key=lambda own: own.cost, default=None)
        kinds[kind] = {
            "at_cost": best and reported(best, baseline),
            "at_accuracy": cheapest and reported(cheapest, baseline),
        }
    own_set = [choice for kind, choice in kinds.items() if kind != CONTROL]
    accurate = [
        own["at_cost"]
        for own in own_set
        if own["at_cost"] and own["at_cost"]["held_out"]["relative_cost"] <= 1 + 1e-9
    ]
    cheap = [own["at_accuracy"] for own in own_set if own["at_accuracy"]]
    kinds[BEST] = {
        "at_cost": max(accurate, key=lambda own: own["held_out"]["top1"], default=None),
        "at_accuracy": min(cheap, key=lambda own: own["held_out"]["relative_cost"], default=None),
    }
    everywhere = None
    if "mirror" in baseline.views:
        twice = try_out((Pass(baseline), Pass(baseline, "mirror")), (1.0,))
        everywhere = reported(twice, baseline)
    return {
        "network": baseline.name,
        "checkpoint_sha256": baseline.trained.sha256,
        "quantizer": baseline.quantizer,
        "widths": [*baseline.model.widths],
        "seed": baseline.seed,
        "top1": Paths.of_pass(*baseline.measured[None]).top1,
        "bit_flops": baseline.cost,
        "weight_bytes": weight_bytes(baseline.model),
        "held_out_top1": held_out.top1,
        "kinds": kinds,
        "all_images_twice": everywhere,
    }


def compare_choices(networks: Sequence[Network], console: Console) -> dict[str, Any]:
    """The content of ``choices.json``.

    Raises:
        UserError: if no network is static.
    """
    baselines = sorted(
        (own for own in networks if own.is_static),
        key=lambda own: (str(own.quantizer), own.cost, own.seed),
    )
    if not baselines:
        raise UserError("no static network among them, which a cascade could be compared with")
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        found = []
        for baseline in baselines:
            count = sum(map(len, rivals(baseline, networks).values()))
            task = progress.add_task(f"beside {baseline.name}", total=count)
            found.append(choices(baseline, networks, lambda task=task: progress.advance(task)))
            alike = (own for own in baselines if own is baseline or own.like(baseline))
            found[-1]["configuration"] = next(alike).name  # several seeds have one
    return {
        "split": "test",
        "held_out_images": len(networks[0].held_out[None].labels),
        "images": len(networks[0].measured[None].labels),
        "baselines": found,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m dqnet.evaluation.choose_cascade", description=__doc__.splitlines()[0]
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders or checkpoints")
    parser.add_argument("--data", metavar="ROOT", help="where the images are now")
    parser.add_argument("--out", type=Path, required=True, help="a folder for the files")
    options = parser.parse_args(arguments)
    take_every_character()
    console = Console()
    config = EvalConfig()
    config.data.root = options.data
    try:
        networks: list[Network] = []
        for path, name in zip(options.runs, names_of(options.runs), strict=True):
            like = networks[0] if networks else None
            networks.append(load_network(path, name, config, console, like))
            print_line(console, f"{name}: measured")
        results = compare_choices(networks, console)
        options.out.mkdir(parents=True, exist_ok=True)
        write_json(options.out / "choices.json", results)
        table = choices_table(results)
        written = [options.out / "choices.json", *write_choices(table, options.out)]
    except UserError as error:
        sys.exit(f"error: {error}")
    print_choices(console, table)
    print_line(console, f"written: {', '.join(map(str, written))}")


if __name__ == "__main__":
    main()
