"""Scores as a line, a table and a picture, for an interactive session."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from heterolora.choosing.allocation import Scored
from heterolora.common.columns import in_columns
from heterolora.common.errors import UserError
from heterolora.elements.element import Element
from heterolora.pictures.drawing import PIXELS
from heterolora.pictures.heat_map import HeatMap

_COLUMNS = ("element", "module", "shape", "score", "share")
_SHOWN_IN_NOTEBOOK = 20


def in_one_line(scored: Sequence[Scored], heuristic: str) -> str:
    """What `repr` shows, also of scores that an error is about because they are no numbers."""
    numbers = (item for item in scored if isinstance(item.score, int | float))
    highest = max(numbers, key=lambda item: item.score, default=None)
    best = "" if highest is None else f", highest {_name(highest)} {highest.score:.4g}"
    return f"<Scores of {len(scored)} elements by {heuristic}{best}>"


def as_table(scored: Sequence[Scored], most: int | None) -> str:
    """Lines with columns below each other, the highest score first."""
    return "\n".join([in_columns([_COLUMNS, *_rows(scored, most)]), *_rest(scored, most)])


def as_html(scored: Sequence[Scored], heuristic: str) -> str:
    """A table for a notebook, with the highest scores."""
    head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
    rows = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in _rows(scored, _SHOWN_IN_NOTEBOOK))
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    caption = html.escape("; ".join([in_one_line(scored, heuristic)[1:-1], *_rest(scored, _SHOWN_IN_NOTEBOOK)]))
    return f"<table><caption>{caption}</caption><tr>{head}</tr>{body}</table>"


def draw(scored: Sequence[Scored], heuristic: str, axes: Any | None) -> Any:
    """A heat map of blocks and names on matplotlib's axes, which are returned."""
    try:
        from matplotlib import pyplot
    except ImportError:
        raise UserError("a plot needs matplotlib", "pip install matplotlib") from None
    picture = HeatMap(f"scores by {heuristic}", {item.element: item.score for item in scored}, "score")
    width, height = (pixels / PIXELS for pixels in picture.size)
    axes = axes or pyplot.subplots(figsize=(width, height), layout="constrained")[1]
    picture.draw(axes)
    axes.set(title=picture.title, xlabel=picture.note)
    return axes


def _rows(scored: Sequence[Scored], most: int | None) -> list[tuple[str, ...]]:
    total = sum(item.score for item in scored)
    ordered: Sequence[Scored] = sorted(scored, key=lambda item: -item.score)[:most]
    return [
        (
            item.element.key,
            item.element.module,
            shape_of(item.element),
            f"{item.score:.4g}",
            f"{item.score / total:.1%}" if total else "–",
        )
        for item in ordered
    ]


def shape_of(element: Element) -> str:
    """`out × in` of the weight, or `experts × out × in`."""
    of_one = f"{element.out_features} × {element.in_features}"
    return of_one if element.experts == 1 else f"{element.experts} × {of_one}"


def _rest(scored: Sequence[Scored], most: int | None) -> list[str]:
    left = 0 if most is None else len(scored) - most
    return [f"and {left} more"] if left > 0 else []


def _name(item: Scored) -> str:
    return item.element.module or item.element.key
