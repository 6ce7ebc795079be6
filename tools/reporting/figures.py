"""A picture in a page, with the legend around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from heterolora.pictures.drawing import Picture, Style
from tools.reporting.svg import inline

_SHRINKS = 420  # pixels; a wider picture keeps its size, and a narrow page scrolls it


class Key(NamedTuple):
    """A line of a legend: the style, the name, and remarks such as the last and the best value."""

    style: Style
    name: str
    last: str = ""
    best: str = ""


@dataclass(frozen=True)
class Chart:
    """A picture and the text around it."""

    picture: Picture
    legend: tuple[Key, ...] = ()

    @property
    def least_width(self) -> float:
        width = self.picture.size[0]
        return width if width > _SHRINKS else 0

    def svg(self) -> str:
        return inline(self.picture)
