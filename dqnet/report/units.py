"""Bit-FLOPs in the unit that suits their size."""

from __future__ import annotations

from dataclasses import dataclass

_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Unit:
    """A power of a thousand: ``divisor`` and its letter (empty for one)."""

    divisor: float
    letter: str

    def show(self, value: float) -> str:
        """``value`` to four significant digits: ``21.82 M``."""
        digits = f"{value / self.divisor:#.4g}".rstrip(".")
        return f"{digits} {self.letter}".rstrip()

    @property
    def axis(self) -> str:
        """An axis label."""
        return f"Bit-FLOPs ({self.letter})" if self.letter else "Bit-FLOPs"


def unit_for(value: float) -> Unit:
    """The largest unit that ``value`` is at least one of."""
    for divisor, letter in _UNITS:
        if abs(value) >= divisor:
            return Unit(divisor, letter)
    return Unit(1.0, "")
