"""A figure as an SVG document: titled and described, its points light; and fitted into the page and its theme.

Palette: Okabe and Ito's, darkened for text.
"""

from __future__ import annotations

import html
import io
import re
from typing import Any

import numpy as np

from reports.drawing import Figure, Line2D

INK, MUTED, RULE, PAPER = "#1f2328", "#59636e", "#d1d9e0", "#ffffff"
GOOD, BAD, EVEN = "#0072b2", "#c24e00", "#6e7781"
# Inside the page the colours follow the theme: each becomes the CSS variable of this name.
THEME = {INK: "ink", MUTED: "muted", RULE: "rule", PAPER: "paper", GOOD: "good", BAD: "bad", EVEN: "even"}

# matplotlib's name of a marker -> its outline about the origin, for a marker of size 2
SHAPES = {
    "o": "M-1 0a1 1 0 1 0 2 0a1 1 0 1 0-2 0z", "s": "M-1-1H1V1H-1z", "^": "M0-1L1 1H-1z", "v": "M0 1L1-1H-1z",
    "D": "M0-1.4L1.4 0 0 1.4-1.4 0z", "X": "M-.5-1L0-.5 .5-1 1-.5 .5 0 1 .5 .5 1 0 .5-.5 1-1 .5-.5 0-1-.5z",
}  # fmt: skip
EDGE = 0.8  # points, of a mark that is not filled


class Marks(Line2D):
    """Points with no line between them, ``size`` points wide.

    In an SVG they are one path whose corners carry a marker, at a tenth of a point, where matplotlib writes an element
    for each: a fifth of the bytes, and a report of 5,000 rows has its points in eight pictures.
    """

    def __init__(
        self, x: Any, y: Any, shape: str, colour: str, *, filled: bool, size: float, alpha: float, **more: Any
    ):
        face, edge = (colour, 0.0) if filled else (PAPER, EDGE)
        super().__init__(
            x, y, marker=shape, ls="", ms=size, color=colour, mfc=face, mec=colour, mew=edge, alpha=alpha, **more
        )
        line = f' stroke="{colour}" stroke-width="{2 * edge / size:.3g}"' if edge else ""
        self.look = (
            f'<path d="{SHAPES[shape]}" transform="scale({size / 2:g})" fill="{face}"{line} opacity="{alpha:g}"/>'
        )
        self.name = ""  # of the look, in a document

    def draw(self, renderer: Any) -> None:
        writer = getattr(renderer, "writer", None)
        if writer is None:  # this is no SVG
            super().draw(renderer)
            return
        points = self.get_transform().transform(self.get_xydata())
        at = " ".join(f"{x:.1f} {renderer.height - y:.1f}" for x, y in points[np.isfinite(points).all(axis=1)].tolist())
        if at:  # the path goes on by nothing, so that its start is not its end too: each point is marked once
            marker = f"marker-start: url(#{self.name}); marker-mid: url(#{self.name})"
            writer.element("path", d=f"M{at}h0", style=f"fill: none; {marker}")


def document(figure: Figure, title: str, text: str) -> str:
    """The figure with a title and a text alternative: the same bytes for the same figure."""
    looks: dict[str, str] = {}
    for marks in figure.findobj(Marks):
        marks.name = looks.setdefault(marks.look, f"mark{len(looks)}")
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, facecolor=PAPER)
    lines = "\n".join(line.strip() for line in out.getvalue().splitlines())
    markers = "\n".join(
        f'<marker id="{name}" markerUnits="userSpaceOnUse" overflow="visible">{look}</marker>'
        for look, name in looks.items()
    )
    said = f"<title>{html.escape(title)}</title>\n<desc>{html.escape(text)}</desc>\n<defs>\n{markers}\n</defs>"
    return re.sub("<svg[^>]*>", lambda tag: f"{tag[0]}\n{said}", lines, count=1) + "\n"


def inline(document: str, name: str) -> str:
    """An SVG for the page: no prologue, ids made unique, colours from the theme, title and text for readers."""
    body = document[document.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", body)
    for part in ("title", "desc"):
        body = body.replace(f"<{part}>", f'<{part} id="{name}-{part}">', 1)
    for colour, variable in THEME.items():
        body = body.replace(colour, f"var(--{variable})")
    # Sizes in points would not shrink on a phone; the view box keeps the proportions.
    opening, rest = body.split(">", 1)
    opening = re.sub(r'\s(?:width|height|version|xmlns(?::xlink)?)="[^"]*"', "", opening)
    rest = rest.replace("xlink:href", "href")
    return f'{opening} role="img" aria-labelledby="{name}-title {name}-desc">{rest}'
