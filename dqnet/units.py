"""Bit-FLOPs in the unit that suits their size."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """A power of a thousand: ``divisor`` and its letter (empty for one)."""

    divisor: float
    letter: str

    def digits(self, value: float, form: str = "#.4g") -> str:
        """``value`` in this unit without its letter, by default to four significant digits."""
        return f"{value / self.divisor:{form}}".rstrip(".")

    def show(self, value: float, form: str = "#.4g") -> str:
        """The same with its letter: ``21.82 M``."""
        return f"{self.digits(value, form)} {self.letter}".rstrip()

    @property
    def axis(self) -> str:
        """An axis label."""
        return f"Bit-FLOPs ({self.letter})" if self.letter else "Bit-FLOPs"


ONE, KILO, MEGA, GIGA, TERA = (
    Unit(1e3**power, letter) for power, letter in enumerate(("", "k", "M", "G", "T"))
)


def unit_for(value: float) -> Unit:
    """The largest unit that ``value`` is at least one of."""
    return next((unit for unit in (TERA, GIGA, MEGA, KILO) if abs(value) >= unit.divisor), ONE)
