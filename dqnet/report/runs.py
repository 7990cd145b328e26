"""A finished run, as its folder describes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from dqnet.config import flatten
from dqnet.errors import UserError
from dqnet.runtime.files import read_json

#: the method of a run whose model was not converted
FLOAT = "float"
#: what ``summary.json`` must have: percentages, Bit-FLOPs, seconds
METRICS = (
    *("seed", "target_bits", "target_bit_flops", "top1", "top5", "loss", "bit_flops"),
    *("bit_flops_std", "mean_width", "epochs", "seconds"),
)


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run.

    Attributes:
        folder: where it was found.
        summary: ``summary.json``, with all of ``METRICS``; costs are ``None`` for a float model.
        config: the recorded configuration, dotted name → value.
        overrides: what was changed on the command line, ``name=value``.
        bytes: of the packed network, coded if it was; ``None``: not known.
    """

    folder: Path
    summary: dict[str, Any]
    config: dict[str, Any]
    overrides: tuple[str, ...]
    bytes: int | None = None

    @property
    def method(self) -> str:
        """The quantizer's name, or ``"float"``."""
        return self.config["quant.quantizer"] or FLOAT

    @property
    def widths(self) -> tuple[int | str, ...]:
        """The candidates; none for a float model."""
        return () if self.method == FLOAT else tuple(self.config["quant.widths"])

    @property
    def kind(self) -> str:
        """``"float"``, ``"static"`` (one width) or ``"dynamic"``."""
        if self.method == FLOAT:
            return FLOAT
        # A plan may say otherwise than the widths; older summaries do not say what was routed.
        routed = self.summary.get("width_counts", len(self.widths) > 1)
        return "dynamic" if routed else "static"


def read_run(folder: Path) -> Run:
    """The run in a folder with ``summary.json`` and ``.hydra/config.yaml``.

    Raises:
        UserError: naming the file that is missing, broken or without a metric it should have.
    """
    path = folder / "summary.json"
    with reading(path):
        summary = read_json(path)
        missing = [name for name in METRICS if name not in summary]
    if missing:
        raise UserError(f"{path} has no {missing[0]!r}")
    path = folder / ".hydra" / "config.yaml"
    with reading(path):
        config = flatten(OmegaConf.to_container(OmegaConf.load(path)))
    if not {"quant.quantizer", "quant.widths"} <= config.keys():
        raise UserError(f"{path} is not the record of a run")
    path = folder / ".hydra" / "overrides.yaml"
    with reading(path):
        overrides = tuple(OmegaConf.load(path)) if path.exists() else ()
    size = _packed_bytes(folder) or summary.get("weight_bytes")
    return Run(folder, summary, config, overrides, size)


def _packed_bytes(folder: Path) -> int | None:
    """Of the file that ``python -m dqnet.export.pack`` wrote, if it has."""
    path = folder / "packed.json"
    if not path.exists():
        return None
    with reading(path):
        return int(read_json(path)["stages"]["coded"])


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns whatever is wrong with a file into one line that names it.

    Raises:
        UserError: for any error that reading it can cause.
    """
    try:
        yield
    except (
        OSError,
        KeyError,
        TypeError,
        ValueError,
        YAMLError,
        OmegaConfBaseException,
    ) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{path} cannot be read: {what}") from error
