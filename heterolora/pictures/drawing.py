"""What all pictures share: their colours and styles, and how they get into a PNG file."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from heterolora.common.files import whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: The colours of the light theme. A page replaces each of them by the colour of this name in its own theme.
MADE_BY = "HeteroLoRA"  # in the head of every file
INK, SOFT, LINE, SURFACE, HEAT, FRAME = "#1a1d23", "#5b6472", "#dfe3e9", "#ffffff", "#0f4c75", "#c2410c"

WIDE_SPAN = 100  # colours and axes are logarithmic if the largest value is more than this times the smallest above 0
PIXELS = 72  # for each inch of a figure: then a point of matplotlib is a pixel of a page
_NARROWEST = 420  # pixels of a file, so that its title has room
_DENSITY = 130  # dots for each inch of a PNG file


@dataclass(frozen=True)
class Style:
    """How a line looks: its colour, marker and dashes, as matplotlib names them, and the marker as a character."""

    colour: str
    marker: str
    sign: str
    dashes: str


# These differ in normal sight and in deuteranopia, and from a white and a dark paper: see tests/test_pictures.py.
_COLOURS = ("#0078fc", "#e47800", "#007890", "#f0606c", "#cc6cf0", "#6c6c00", "#007854", "#fc54a8")
_MARKERS = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"), ("v", "▼"), ("X", "✖"), ("P", "✚"), ("*", "★"))
_DASHES = ("solid", "dashed", "dashdot", "dotted")


def style(position: int) -> Style:
    """The style of the line at this position, 0, 1, …; no two of the first 32 have the same colour and marker."""
    turn, place = divmod(position, len(_COLOURS))
    return Style(_COLOURS[place], *_MARKERS[(place + turn) % len(_MARKERS)], _DASHES[(place + turn) % len(_DASHES)])


@dataclass(frozen=True)
class Tip:
    """What a page shows while the pointer is over a place of a picture: a rectangle from `low` to `high` on its axes.

    Small rectangles and points react in a few pixels around them.
    """

    text: str
    low: tuple[float, float]
    high: tuple[float, float]


class Picture(Protocol):
    """What a picture shows.

    Attributes:
        title: above it.
        note: what a reader must know of its marks, in a line below it; may be empty.
        size: width and height in pixels of a page.
    """

    @property
    def title(self) -> str: ...

    @property
    def note(self) -> str: ...

    @property
    def size(self) -> tuple[float, float]: ...

    def draw(self, axes: Axes) -> None: ...

    def tips(self) -> Iterable[Tip]: ...


def figure_of(*pictures: Picture) -> Figure:
    """The pictures side by side, without titles and notes."""
    from matplotlib.figure import Figure

    widths, heights = zip(*(picture.size for picture in pictures), strict=True)
    size = (sum(widths) / PIXELS, max(heights) / PIXELS)
    figure = Figure(figsize=size, dpi=PIXELS, layout="constrained", facecolor="none")
    every = figure.subplots(1, len(pictures), squeeze=False, width_ratios=widths)[0]
    for axes, picture in zip(every, pictures, strict=True):
        axes.set_facecolor("none")
        axes.tick_params(labelsize=10, labelcolor=SOFT, color=LINE)
        axes.spines[:].set_color(LINE)
        axes.spines[["top", "right"]].set_visible(False)
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set(color=SOFT, fontsize=11)
        picture.draw(axes)
    return figure


def save(path: Path, *pictures: Picture) -> None:
    """Draw the pictures side by side into a PNG file, which is written completely or not at all."""
    figure = figure_of(*pictures)
    width, height = figure.get_size_inches() * PIXELS
    width = max(width, _NARROWEST * len(pictures))
    titles = [textwrap.fill(picture.title, int(width / len(pictures) / 8)) for picture in pictures]
    notes = dict.fromkeys(textwrap.fill(picture.note, int(width / 7)) for picture in pictures if picture.note)
    for axes, title in zip(figure.axes, titles, strict=True):
        axes.set_title(title, fontsize=12, color=INK)
    if notes:
        figure.supxlabel("\n".join(notes), fontsize=10, color=SOFT)
    lines = max(title.count("\n") for title in titles) + sum(note.count("\n") + 1 for note in notes)
    figure.set_size_inches(width / PIXELS, (height + 24 + 16 * lines) / PIXELS)
    figure.set_dpi(_DENSITY)
    if (layout := figure.get_layout_engine()) is not None:  # laid out once: `savefig` would draw all of it for that
        layout.execute(figure)
        figure.set_layout_engine(None)  # "none" leaves a placeholder, for which `savefig` draws twice
    with whole(path) as unfinished:
        about, quick = {"Software": MADE_BY}, {"compress_level": 1}
        figure.savefig(unfinished, dpi=_DENSITY, facecolor=SURFACE, metadata=about, pil_kwargs=quick)


def number(value: float) -> str:
    """A short form of a number: 0.8912, 12,000, 5e-05."""
    return f"{int(value):,}" if value == int(value) and abs(value) < 1e6 else f"{value:.4g}"


def spans(flags: Iterable[bool]) -> list[tuple[int, int]]:
    """First and last position of each run of true flags."""
    runs = itertools.groupby(enumerate(flags), lambda pair: pair[1])
    positions = [[place for place, _ in run] for on, run in runs if on]
    return [(run[0], run[-1]) for run in positions]
