"""A figure of the report: its words, its files, and its SVG in the colours of the page."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from dqnet.runtime.files import write_atomically

#: Every colour of a figure. In the page each is the CSS variable of its name, so that a figure
#: follows the light or the dark scheme; shades of ``ACCENT`` are its opacity.
INK, MUTED, LINE = "#1b1f24", "#56606b", "#d5dbe1"
SURFACE, ACCENT, CONTRAST = "#ffffff", "#2563b0", "#b8430a"
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    SURFACE: "var(--surface)",
    ACCENT: "var(--accent)",
    CONTRAST: "var(--contrast)",
}
#: decorates whatever draws or saves a figure
in_style = matplotlib.rc_context(
    {
        "font.size": 9.5,
        "font.family": "DejaVu Sans",
        "text.color": INK,
        "text.parse_math": False,  # a class may be called "$"
        "figure.facecolor": SURFACE,
        "axes.facecolor": "none",
        "axes.edgecolor": LINE,
        "axes.labelcolor": MUTED,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.color": LINE,
        "grid.linewidth": 0.6,
        "xtick.color": LINE,
        "ytick.color": LINE,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": MUTED,
        "legend.frameon": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "dqnet",
        "pdf.fonttype": 42,
    }
)
#: width and height in inches
SIZE = (4.4, 3.0)
#: an artist whose id begins with this has a tooltip in the page; files ignore it
_TIP = "tip="
_SVG = "http://www.w3.org/2000/svg"
_LINK = "{http://www.w3.org/1999/xlink}href"


@dataclass(frozen=True)
class Figure:
    """A figure that is drawn.

    Attributes:
        name: the stem of its files.
        title: a few words.
        explanation: one plain sentence on how to read it.
        alt: what it shows, for those who cannot see it.
        canvas: the drawing.
    """

    name: str
    title: str
    explanation: str
    alt: str
    canvas: Canvas

    @in_style
    def save(self, folder: Path) -> None:
        """Writes ``NAME.png`` and ``NAME.pdf``; equal figures become equal files."""
        for kind, undated in (("png", {}), ("pdf", {"CreationDate": None})):
            write_atomically(
                folder / f"{self.name}.{kind}",
                lambda path, kind=kind, undated=undated: self.canvas.savefig(
                    path, format=kind, dpi=200, metadata=undated
                ),
            )

    @in_style
    def svg(self) -> Markup:
        """The figure as an ``<svg>`` element with the page's colours and tooltips, all escaped."""
        file = io.StringIO()
        self.canvas.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        root = ElementTree.fromstring(file.getvalue())
        root.remove(root.find(f"{{{_SVG}}}metadata"))
        for element in root.iter():
            self._adapt(element)
        for size in ("width", "height"):
            del root.attrib[size]
        root.set("role", "img")
        root.set("aria-label", self.alt)
        ElementTree.register_namespace("", _SVG)
        return Markup(ElementTree.tostring(root, encoding="unicode"))

    def _adapt(self, element: ElementTree.Element) -> None:
        """Colours become variables, tooltips attributes, and ids the figure's own."""
        identity = element.attrib.pop("id", "")
        if identity.startswith(_TIP):
            element.set("data-tip", identity.removeprefix(_TIP))
        elif element.tag in (f"{{{_SVG}}}clipPath", f"{{{_SVG}}}path") and identity:
            element.set("id", f"{self.name}-{identity}")
        link = element.attrib.pop(_LINK, None)
        if link is not None:
            element.set("href", f"#{self.name}-{link.removeprefix('#')}")
        for key in {"style", "clip-path", "fill", "stroke"} & element.attrib.keys():
            value = element.attrib[key].replace("url(#", f"url(#{self.name}-")
            value = re.sub(r"font-family: [^;]+|'DejaVu Sans'[^;]*", "font-family: inherit", value)
            value = re.sub(r"#\w{6}\b", lambda m: _VARIABLES.get(m[0], m[0]), value)
            element.set(key, value)


def blank(size: tuple[float, float] = SIZE) -> tuple[Canvas, Axes]:
    """An empty drawing of ``size``, width and height in inches, to be drawn on :data:`in_style`."""
    canvas = Canvas(figsize=size, layout="constrained")
    return canvas, canvas.subplots()


def tip(artist: Artist, text: str) -> None:
    """Shows ``text`` in the page when ``artist`` is pointed at."""
    artist.set_gid(_TIP + text)
