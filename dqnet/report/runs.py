"""A finished run, as its folder describes it."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from dqnet.config import flatten
from dqnet.errors import UserError

#: the method of a run whose model was not converted
FLOAT = "float"


@dataclass(frozen=True)
class CurvePoint:
    """One budget of a dynamic network's trade-off curve: cost of the mean image and accuracy."""

    bit_flops: float
    top1: float  # %


@dataclass(frozen=True)
class Gain:
    """Top-1 with the images' own routing less that with shuffled, and its interval; points."""

    points: float
    low: float
    high: float


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: where it was found.
        method: the quantizer's name, or ``"float"``.
        widths: candidate widths; empty for a float model.
        overrides: what was changed on the command line, ``name=value``.
        config: the recorded configuration, dotted name → value.
        target_bits: the width whose static cost was the target; ``None`` for a float model, as for
            all costs below.
        target_bit_flops: the same in Bit-FLOPs.
        top1, top5: test accuracy, %.
        bit_flops, bit_flops_std: mean and standard deviation over the test images.
        routed: whether images choose their precisions; ``None``: the summary does not say.
        gain: of the controls in ``eval.json``; ``None`` if there are none at the run's own budget.
        curve: ``curve.csv``, by ascending cost; empty if there is none. Neither counts if eval.py
            measured the validation part, or another checkpoint than the summary's.
    """

    folder: Path
    method: str
    widths: tuple[int | str, ...]
    overrides: tuple[str, ...]
    config: dict[str, Any]
    seed: int
    target_bits: float | None
    target_bit_flops: float | None
    top1: float
    top5: float
    loss: float
    bit_flops: float | None
    bit_flops_std: float | None
    mean_width: float
    distinct_routings: int | None
    routed: bool | None
    epochs: int
    seconds: float
    gain: Gain | None
    curve: tuple[CurvePoint, ...]

    @property
    def kind(self) -> str:
        """``"float"``, ``"static"`` (one width) or ``"dynamic"``."""
        if self.method == FLOAT:
            return FLOAT
        # A plan may say otherwise than the widths; older summaries do not say what was routed.
        routed = len(self.widths) > 1 if self.routed is None else self.routed
        return "dynamic" if routed else "static"

    @property
    def relative_cost(self) -> float | None:
        """Bit-FLOPs of the mean image over the target."""
        return None if self.bit_flops is None else self.bit_flops / self.target_bit_flops


def read_run(folder: Path) -> Run:
    """The run in a folder with ``summary.json`` and ``.hydra/config.yaml``.

    Raises:
        UserError: naming the file that is missing, broken or without a metric it should have.
    """
    summary = _json(folder / "summary.json")
    config = _yaml(folder / ".hydra" / "config.yaml")
    overrides = folder / ".hydra" / "overrides.yaml"
    evaluation = _json(folder / "eval.json") if (folder / "eval.json").exists() else {}
    # eval.py writes its files together: the test part, with the summary's checkpoint, or neither.
    checkpoint = Path(evaluation.get("checkpoint", "best.pt")).name
    own = evaluation.get("split", "test") == "test" and checkpoint == "best.pt"
    try:
        quant = config["quant"]
        converted = quant["quantizer"] is not None
        method = quant["quantizer"] if converted else FLOAT
        widths = tuple(quant["widths"]) if converted else ()
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder}/.hydra/config.yaml is not the record of a run") from error
    try:
        return Run(
            folder=folder,
            method=method,
            widths=widths,
            overrides=tuple(_yaml(overrides)) if overrides.exists() else (),
            config=flatten(config),
            distinct_routings=summary.get("distinct_routings"),
            routed=bool(summary["width_counts"]) if "width_counts" in summary else None,
            gain=_gain(folder, evaluation) if own else None,
            curve=_curve(folder / "curve.csv") if own else (),
            **{name: summary[name] for name in _METRICS},
        )
    except KeyError as error:
        raise UserError(f"{folder}/summary.json has no {error.args[0]!r}") from error


_METRICS = (
    *("seed", "target_bits", "target_bit_flops", "top1", "top5", "loss", "bit_flops"),
    *("bit_flops_std", "mean_width", "epochs", "seconds"),
)


def _gain(folder: Path, evaluation: dict[str, Any]) -> Gain | None:
    measured = (evaluation.get("controls") or {}).get("instance_gain")
    # At another budget it belongs to another cost than the run's.
    if measured is None or evaluation.get("budget") is not None:
        return None
    try:
        return Gain(*(measured[name] for name in ("points", "low", "high")))
    except (KeyError, TypeError) as error:
        line = f"{folder}/eval.json: controls.instance_gain lacks points, low or high"
        raise UserError(line) from error


def _curve(path: Path) -> tuple[CurvePoint, ...]:
    if not path.exists():
        return ()
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            points = [CurvePoint(float(row["bit_flops"]), float(row["top1"])) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is broken: numbers are needed under bit_flops and top1") from error
    return tuple(sorted(points, key=lambda point: point.bit_flops))


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} cannot be read: it does not hold an object")
    return content


def _yaml(path: Path) -> Any:
    try:
        return OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: a run keeps its configuration there") from error
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
