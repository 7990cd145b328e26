"""A figure as a value: what it is called, what it shows, and how it is drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from dqnet.report.page.theme import PAPER, Theme
from dqnet.runtime.files import write_atomically

#: width and height in inches
SIZE = (4.4, 3.0)
#: an artist whose id begins with this carries a tooltip; files ignore it
TIP = "tip="


@dataclass(frozen=True)
class Figure:
    """One figure of the report.

    Attributes:
        name: the stem of its files.
        title: a few words.
        explanation: one plain sentence on how to read it.
        alt: what it shows, for who cannot see it.
        draw: draws it in a theme's colours.
        size: width and height in inches.
    """

    name: str
    title: str
    explanation: str
    alt: str
    draw: Callable[[Axes, Theme], None]
    size: tuple[float, float] = SIZE

    def canvas(self, theme: Theme) -> Canvas:
        """The drawn figure. Saving it is to happen under ``theme.settings`` too."""
        canvas = Canvas(figsize=self.size, layout="constrained")
        self.draw(canvas.subplots(), theme)
        return canvas

    def save(self, folder: Path) -> None:
        """Writes ``NAME.png`` and ``NAME.pdf``; equal figures become equal files."""
        with matplotlib.rc_context(PAPER.settings):
            canvas = self.canvas(PAPER)
            for kind, undated in (("png", {}), ("pdf", {"CreationDate": None})):
                write_atomically(
                    folder / f"{self.name}.{kind}",
                    lambda path, kind=kind, undated=undated: canvas.savefig(
                        path, format=kind, dpi=200, metadata=undated
                    ),
                )


def tip(artist: Artist, text: str) -> None:
    """Shows ``text`` in the page when ``artist`` is pointed at."""
    artist.set_gid(TIP + text)
