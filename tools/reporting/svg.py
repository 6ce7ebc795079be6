"""A picture as SVG inside a page: its colours follow the theme of the page, its tips show values under the pointer."""

from __future__ import annotations

import hashlib
import html
import io
import re
from typing import TYPE_CHECKING

from heterolora.pictures.drawing import FRAME, HEAT, INK, LINE, SOFT, SURFACE, Picture, Tip, figure_of

if TYPE_CHECKING:
    from matplotlib.transforms import Transform

_NAMES = {INK: "ink", SOFT: "soft", LINE: "line", SURFACE: "surface", HEAT: "heat", FRAME: "frame"}
_REACH = 6  # pixels around a point
_ID = "[mp][0-9a-f]{10}"  # of a marker or a clipping path; groups have other ones, which nothing needs

_WITHOUT = re.compile(
    rf"""<metadata>.*?</metadata>|<defs>\s*<style.*?</defs>|\ xmlns[:a-z]*="[^"]*"|\ version="1.1"
    |\ id="(?!{_ID}")[^"]*"|\ (height|width)="[^"]*pt"|;\ font-family:[^;"]*|\ transform="rotate\(-0\ [^"]*"|xlink:""",
    re.DOTALL | re.VERBOSE,
)
_LONG = re.compile(r"(\d\d\.\d|\d\.\d\d)\d+")  # numbers with more digits than a screen shows


def inline(picture: Picture) -> str:
    """Draw the picture, as an element of an HTML page whose style has the variables --ink, --soft, …"""
    import matplotlib

    figure, text = figure_of(picture), io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "heterolora"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    width, height = picture.size
    tips = "".join(_tip(tip, figure.axes[0].transData, height) for tip in picture.tips())
    drawn = _small(text.getvalue()).replace("</svg>", f'<g fill="transparent">{tips}</g></svg>')
    label = html.escape(picture.title)
    size = f'class="picture" role="img" aria-label="{label}" style="max-width: {1.25 * width:.0f}px"'
    return drawn.replace("<svg", f"<svg {size}", 1)


def _small(svg: str) -> str:
    """Without what an HTML page does not need, with short numbers, colours of the page, and names of its own."""
    text = _WITHOUT.sub("", svg[svg.index("<svg") :])
    text = re.sub('"[^"]*"', lambda value: _LONG.sub(r"\1", value[0]), re.sub(r"\s*\n\s*", " ", text))
    text = text.replace("> <", "><")
    while text != (text := re.sub(r"<g>([^<]*(?:<(?!/?g\b)[^<]*)*)</g>", r"\1", text)):  # innermost groups first
        pass
    for colour, name in _NAMES.items():
        text = text.replace(colour, f"var(--{name})")
    own = hashlib.sha256(text.encode()).hexdigest()[:6]
    return re.sub(rf'(id="|#)({_ID})', rf"\g<1>{own}\g<2>", text)


def _tip(tip: Tip, to_pixels: Transform, height: float) -> str:
    (left, low), (right, high) = sorted(to_pixels.transform([tip.low, tip.high]).tolist())
    bottom, top = sorted((low, high))
    wider, taller = (max(0.0, _REACH - (end - start) / 2) for start, end in ((left, right), (bottom, top)))
    box = (left - wider, height - top - taller, right - left + 2 * wider, top - bottom + 2 * taller)
    x, y, w, h = (f"{value:.0f}" for value in box)
    text = html.escape(tip.text, quote=False)
    return f'<rect x="{x}" y="{y}" width="{w}" height="{h}"><title>{text}</title></rect>'
