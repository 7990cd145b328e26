"""The colours of figures: fixed ones in a file, CSS variables in the page."""

from __future__ import annotations

from dataclasses import dataclass, fields

from matplotlib import colormaps
from matplotlib.colors import to_hex, to_rgb

from dqnet.formats import Precision


@dataclass(frozen=True)
class Theme:
    """Every colour that a figure uses, as ``#rrggbb``; shades of ``accent`` are its opacity."""

    ink: str
    muted: str
    line: str
    surface: str
    accent: str
    contrast: str

    @property
    def settings(self) -> dict[str, object]:
        """matplotlib's rcParams in these colours."""
        return {
            "font.size": 9.5,
            "font.family": "DejaVu Sans",
            "text.color": self.ink,
            # A class may be called "$".
            "text.parse_math": False,
            "figure.facecolor": self.surface,
            "axes.facecolor": "none",
            "axes.edgecolor": self.line,
            "axes.labelcolor": self.muted,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "axes.grid": True,
            "grid.color": self.line,
            "grid.linewidth": 0.6,
            "xtick.color": self.line,
            "ytick.color": self.line,
            "xtick.labelcolor": self.muted,
            "ytick.labelcolor": self.muted,
            "legend.frameon": False,
            "svg.fonttype": "none",
            "svg.hashsalt": "dqnet",
            "pdf.fonttype": 42,
        }


#: for files
PAPER = Theme(
    ink="#1b1f24",
    muted="#56606b",
    line="#d5dbe1",
    surface="#ffffff",
    accent="#2563b0",
    contrast="#b8430a",
)
#: for the page: each colour stands for the CSS variable of its name
PAGE = Theme(*(f"#0000{i:02x}" for i in range(1, len(fields(Theme)) + 1)))
CSS_VARIABLES = {getattr(PAGE, field.name): f"var(--{field.name})" for field in fields(Theme)}


@dataclass(frozen=True)
class WidthColour:
    """A precision's colour and the ink that is readable on it, as ``#rrggbb``."""

    precision: Precision
    fill: str
    ink: str


def width_colours(precisions: tuple[Precision, ...]) -> tuple[WidthColour, ...]:
    """A colour for each precision, the cheapest lightest.

    Part of viridis, whose order survives every form of colour blindness and a grey print; its ends
    are left out, being invisible on a white or a black page.
    """
    colours = []
    for i, precision in enumerate(precisions):
        place = 0.9 - 0.7 * i / max(len(precisions) - 1, 1)
        fill = to_hex(colormaps["viridis"](place))
        red, green, blue = to_rgb(fill)
        light = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 > 0.18
        colours.append(WidthColour(precision, fill, "#101317" if light else "#ffffff"))
    return tuple(colours)
