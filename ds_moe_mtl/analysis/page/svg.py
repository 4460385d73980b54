"""Inline SVG: elements whose texts are escaped, axes with round numbers, labels that fit.

Colours and fonts are classes of page.css, so a drawing follows the page's light and dark.
"""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from markupsafe import Markup

SLOTS = 8
"""Colours that page.css tells apart: s0 to s7."""

TOP = 16
"""Pixels above a drawing's rows, where an axis that is far below is written too."""

_TALL = 400
_TEXT = 11  # pixels high
_GLYPH = 6.9  # pixels wide, as a digit of a wide font at that height


class Drawing:
    """An SVG of fixed size with a title that is read aloud."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self.width, self.height = width, height
        self._root = ElementTree.Element(
            "svg",
            {
                "viewBox": f"0 0 {width:g} {height:g}",
                "width": f"{width:g}",
                "height": f"{height:g}",
                "role": "img",
                "aria-label": title,
            },
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """Draw a straight line of a class."""
        ends = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
        self._add("line", kind, **ends)

    def path(self, points: Sequence[tuple[float, float]], kind: str, closed: bool = False) -> None:
        """Draw a line through points [(x, y)]."""
        steps = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self._add("path", kind, d=f"M{steps}{'Z' if closed else ''}")

    def dot(self, x: float, y: float, kind: str, tip: str = "", radius: float = 2.6) -> None:
        """Draw a point; tip: what is shown over it."""
        self._tipped(self._add("circle", kind, cx=x, cy=y, r=radius), tip)

    def rect(self, x: float, y: float, width: float, height: float, kind: str, tip: str = ""):
        """Draw a filled rectangle."""
        self._tipped(self._add("rect", kind, x=x, y=y, width=width, height=height), tip)

    def text(self, x: float, y: float, text: str, kind: str = "", room: float = 1e9) -> None:
        """Write a text, cut where it is wider than `room` pixels; the whole text is its tip.

        kind: classes; it starts at x, or is "middle" or "end" there.
        """
        shown = fitted(text, room)
        element = self._add("text", f"t {kind}".strip(), x=x, y=y)
        element.text = shown
        if shown != text:
            self._tipped(element, text)

    def markup(self) -> Markup:
        """Return the drawing as markup."""
        return Markup(ElementTree.tostring(self._root, encoding="unicode"))

    def _add(self, tag: str, kind: str, **values) -> ElementTree.Element:
        rounded = {k: f"{v:.6g}" if isinstance(v, float | int) else v for k, v in values.items()}
        return ElementTree.SubElement(self._root, tag, {"class": kind, **rounded})

    @staticmethod
    def _tipped(element: ElementTree.Element, tip: str) -> None:
        if tip:
            ElementTree.SubElement(element, "title").text = tip


@dataclass(frozen=True)
class Axis:
    """Values low to high on pixels start to end, with round ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """Return the pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def name(self, tick: float) -> str:
        """Return a tick as text: thousands with k, small ones as 7.5e-4."""
        largest = max(map(abs, self.ticks))
        if tick == 0:
            return "0"
        if largest >= 10_000:
            return f"{tick / 1000:g}k"
        if largest < 0.01:
            power = math.floor(math.log10(largest))
            return f"{tick / 10**power:.3g}e{power}"
        return f"{tick:.6g}"


def axis(values: Sequence[float], start: float, end: float, ticks: int = 4, whole=False) -> Axis:
    """Return an axis that holds the values, widened where they are one value."""
    from matplotlib.ticker import MaxNLocator

    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
        room = 0.5 if whole else abs(low) * 0.1 or 1.0
        low, high = low - room, high + room
    found = MaxNLocator(ticks, integer=whole, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    inside = tuple(float(tick) for tick in found if low <= tick <= high)
    if whole:
        inside = tuple(tick for tick in inside if tick == int(tick))
    return Axis(low, high, start, end, inside or (low,))


def frame(drawing: Drawing, across: Axis, up: Axis | None) -> None:
    """Draw the grid and the numbers of both axes; up: from the bottom's pixel to the top's."""
    bottom = up.start if up is not None else drawing.height - 22
    top = up.end if up is not None else TOP
    for tick in across.ticks:
        x = across.at(tick)
        drawing.line(x, top, x, bottom, "rule")
        half = _GLYPH * len(across.name(tick)) / 2
        place = min(max(x, half), drawing.width - half)
        drawing.text(place, bottom + 14, across.name(tick), "middle")
        if bottom - top > _TALL:
            drawing.text(place, top - 5, across.name(tick), "middle")
    for tick in up.ticks if up is not None else ():
        y = up.at(tick)
        drawing.line(across.start, y, across.end, y, "rule")
        drawing.text(across.start - 5, y + 4, up.name(tick), "end")


def fitted(text: str, room: float) -> str:
    """Return a text in one line; where it is wider than `room` pixels, without its middle."""
    text = " ".join(text.split())
    if _width(text) <= room:
        return text
    half = (room - _width("…")) / 2
    return f"{_beginning(text, half)}…{_beginning(text[::-1], half)[::-1]}"


def _beginning(text: str, room: float) -> str:
    kept = 0
    while _width(text[: kept + 1]) <= room:
        kept += 1
    return text[:kept]


def _width(text: str) -> float:
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return _GLYPH * len(text) + (_TEXT + 1 - _GLYPH) * wide
