"""A wrong use: what is typed, and what the one line that answers has to name."""

from __future__ import annotations

from dataclasses import dataclass

#: what every command is given first, which the arguments of a case may override
COMMON = {
    "train.py": (
        "hydra.run.dir=run",
        "data.size=8",
        "trainer.device=cpu",
        "trainer.progress=false",
        "trainer.epochs=1",
    ),
    "eval.py": ("output=out", "trainer.device=cpu"),
}


@dataclass(frozen=True)
class Case:
    """One wrong use.

    Attributes:
        arguments: as typed, without :data:`COMMON`.
        named: texts that the line has to contain: the offending thing, and what would be right.
        script: train.py or eval.py.
        without_gpu: it is wrong only on a machine without a GPU.
        unprivileged: it is wrong only for a user who may not read everything.
    """

    arguments: str
    named: tuple[str, ...]
    script: str = "train.py"
    without_gpu: bool = False
    unprivileged: bool = False

    def __str__(self) -> str:
        return f"{self.script} {self.arguments}"


def of_train(*rows: tuple[str, ...]) -> list[Case]:
    return [Case(arguments, tuple(named)) for arguments, *named in rows]


def of_eval(*rows: tuple[str, ...]) -> list[Case]:
    return [Case(arguments, tuple(named), "eval.py") for arguments, *named in rows]
