"""A figure as inline SVG that follows the page's colours and shows tooltips."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup

from dqnet.report.page.figure import TIP, Figure
from dqnet.report.page.theme import CSS_VARIABLES, PAGE

_SVG = "http://www.w3.org/2000/svg"
_LINK = "{http://www.w3.org/1999/xlink}href"


def inline_svg(figure: Figure) -> Markup:
    """The figure as an ``<svg>`` element; every string in it is escaped."""
    file = io.StringIO()
    with matplotlib.rc_context(PAGE.settings):
        figure.canvas(PAGE).savefig(file, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())
    for parent in list(root.iter()):
        for child in [c for c in parent if c.tag.rpartition("}")[2] == "metadata"]:
            parent.remove(child)
    for element in root.iter():
        _adapt(element, figure.name)
    for size in ("width", "height"):
        del root.attrib[size]
    root.set("role", "img")
    root.set("aria-label", figure.alt)
    ElementTree.register_namespace("", _SVG)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _adapt(element: ElementTree.Element, name: str) -> None:
    """Colours become variables, tooltips attributes, and ids the figure's own."""
    identity = element.attrib.pop("id", "")
    if identity.startswith(TIP):
        element.set("data-tip", identity.removeprefix(TIP))
    elif element.tag in (f"{{{_SVG}}}{tag}" for tag in ("clipPath", "path")) and identity:
        element.set("id", f"{name}-{identity}")
    link = element.attrib.pop(_LINK, None)
    if link is not None:
        element.set("href", f"#{name}-{link.removeprefix('#')}")
    for key in ("style", "clip-path", "fill", "stroke"):
        if key in element.attrib:
            value = element.attrib[key].replace("url(#", f"url(#{name}-")
            value = re.sub(r"font-family: [^;]+|'DejaVu Sans'[^;]*", "font-family: inherit", value)
            value = re.sub(r"#0000\w\w", lambda m: CSS_VARIABLES.get(m[0], m[0]), value)
            element.set(key, value)
