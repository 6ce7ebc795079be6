"""Pictures of a run: a heat map with a number for each element, and the timeline of its reallocations."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from heterolora.choosing.history import History
from heterolora.common.files import whole
from heterolora.elements.element import Place, order_of

COLOURS = "YlGnBu"
MARK = "#d1495b"
WIDE_SPAN = 100  # colours are logarithmic if the largest value is more than this times the smallest one above 0
OFF, ON = "#e6e6ea", "#2a6f97"
MOST_LABELS = 60  # with more rows, labels would overlap: one label per block is shown


def heat_map(
    path: Path,
    values: Mapping[Place, float],
    title: str,
    marked: Collection[str] = (),
    label: str = "",
    mark: str = "on",
    blocks: int = 0,
) -> None:
    """Draw the value of every place as a colour and as a number; the file is written completely or not at all.

    Whole numbers are written as they are, others with three digits and a common power of ten, which the label names.

    Args:
        path: the PNG file.
        values: finite and not negative; missing places stay white.
        title: above the picture.
        marked: keys of the places that get a frame.
        label: the name of the values, at the colour bar.
        mark: the meaning of the frame.
        blocks: the least number of rows.
    """
    layers = sorted({place.layer for place in values} | set(range(blocks)))
    names = sorted({place.name for place in values}, key=order_of)
    grid = np.full((len(layers), len(names)), np.nan)
    cell = {place: (layers.index(place.layer), names.index(place.name)) for place in values}
    for place, value in values.items():
        grid[cell[place]] = value

    power = _common_power(grid)
    write = "{:.0f}".format if _all_whole(grid) else _three_digits
    figure = Figure(figsize=(1.8 + 0.85 * len(names), 1.6 + 0.36 * len(layers)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(grid, aspect="auto", cmap=COLOURS, norm=_norm(grid))
    for place, (row, column) in cell.items():
        red, green, blue, _ = image.to_rgba(grid[row, column])
        colour = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else "black"
        weight = "bold" if place.key in marked else "normal"
        text = write(grid[row, column] / 10.0**power)
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour, fontweight=weight)
        if place.key in marked:
            axes.add_patch(Rectangle((column - 0.47, row - 0.44), 0.94, 0.88, fill=False, edgecolor=MARK, linewidth=2))
    axes.set_xticks(range(len(names)), names, fontsize=9)
    axes.set_yticks(range(len(layers)), layers, fontsize=9)
    axes.set_ylabel("block")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=11)
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, aspect=max(20, 2 * len(layers)))
    if _all_whole(grid) and not isinstance(image.norm, LogNorm):
        bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    unit = f"numbers in the cells × $10^{{{power}}}$" if power else ""
    bar.set_label(", ".join(part for part in (label, unit) if part))
    if marked:
        handle = Rectangle((0, 0), 1, 1, fill=False, edgecolor=MARK, linewidth=2, label=mark)
        figure.legend(handles=[handle], loc="outside lower center", frameon=False, fontsize=9)
    with whole(path) as unfinished:
        figure.savefig(unfinished, dpi=130)


def scatter(path: Path, points: Mapping[Place, tuple[float, ...]], title: str, marked: Collection[str]) -> None:
    """Draw two values of every place against each other; `marked` are the keys of the places that are on."""
    values = [value for point in points.values() for value in point]
    figure = Figure(figsize=(5.6, 5.0), layout="constrained")
    axes = figure.subplots()
    for label, colour in (("off", "#8a8f98"), ("on", MARK)):
        pairs = [point for place, point in points.items() if (place.key in marked) == (label == "on")]
        if pairs:
            axes.scatter(*zip(*pairs, strict=True), s=22, color=colour, label=label)
    if min(values) > 0 and max(values) / min(values) > WIDE_SPAN:
        axes.set(xscale="log", yscale="log")
    axes.plot((min(values), max(values)), (min(values), max(values)), color=OFF, zorder=0, label="equal scores")
    axes.set_xlabel("score from every second batch")
    axes.set_ylabel("score from the other batches")
    axes.set_title(title, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with whole(path) as unfinished:
        figure.savefig(unfinished, dpi=130)


def _norm(grid: np.ndarray) -> Normalize:
    """Linear from 0, or logarithmic if small values would have the same colour."""
    positive = grid[grid > 0]  # NaN is not
    if len(positive) and positive.max() / positive.min() > WIDE_SPAN:
        return _LogFromZero(positive.min(), positive.max())
    return Normalize(0, positive.max() if len(positive) else 1)


class _LogFromZero(LogNorm):
    """Logarithmic, with the lowest colour for 0."""

    def __call__(self, value: object, clip: bool | None = None) -> np.ma.MaskedArray:
        values = np.ma.masked_invalid(value)
        return super().__call__(np.ma.where(values <= 0, self.vmin, values), clip)


def _all_whole(grid: np.ndarray) -> bool:
    there = grid[~np.isnan(grid)]
    return bool((there == np.round(there)).all() and there.max(initial=0) < 1e4)


def _common_power(grid: np.ndarray) -> int:
    """The power of ten of the largest value; 0 if the values are readable without it."""
    highest = float(np.nanmax(grid))
    if _all_whole(grid) or highest == 0:
        return 0
    power = math.floor(math.log10(highest))
    return 0 if -1 <= power <= 2 else power


def _three_digits(value: float) -> str:
    """0.123, 1.23, 12.3, 123; very small values with an exponent, such as 3e-7."""
    if 0 < value < 0.001:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:.3g}"


def timeline(path: Path, *histories: tuple[str, History]) -> None:
    """Draw which elements were on after each reallocation, with one panel for each titled history, into a PNG file.

    White lines separate blocks and epochs.
    """
    rows = max(len(history.places) for _, history in histories)
    height = min(max(3.0, 0.16 * rows), 40.0) + 1.2
    figure = Figure(figsize=(max(7.0, 5.5 * len(histories)), height), layout="constrained")
    panels = figure.subplots(1, len(histories), squeeze=False)[0]
    for panel, (title, history) in zip(panels, histories, strict=True):
        _draw_history(panel, title, history)
    handles = [Patch(color=color, label=label) for color, label in ((ON, "on"), (OFF, "off"))]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    with whole(path) as unfinished:
        figure.savefig(unfinished, dpi=120)


def _draw_history(panel: Axes, title: str, history: History) -> None:
    decisions, places = history.decisions, history.places
    on = np.array([decision.on for decision in decisions], dtype=float).T  # (elements, reallocations)
    colours = ListedColormap([OFF, ON])
    panel.imshow(on, aspect="auto", interpolation="nearest", cmap=colours, vmin=0, vmax=1)
    panel.set_title(title)
    panel.set_xlabel("reallocation, at epoch:batch")
    steps = np.unique(np.linspace(0, len(decisions) - 1, min(len(decisions), 10)).astype(int))
    panel.set_xticks(steps, [f"{k}\n{decisions[k].epoch}:{decisions[k].step}" for k in steps], fontsize=7)
    first_of_block = [i for i, place in enumerate(places) if i == 0 or places[i - 1].layer != place.layer]
    if len(places) <= MOST_LABELS:
        panel.set_yticks(range(len(places)), [place.key for place in places], fontsize=7)
    else:
        panel.set_yticks(first_of_block, [f"layer_{places[i].layer}" for i in first_of_block], fontsize=7)
    for i in first_of_block[1:]:
        panel.axhline(i - 0.5, color="white", linewidth=1.2)
    for k in range(1, len(decisions)):
        if decisions[k].epoch != decisions[k - 1].epoch:
            panel.axvline(k - 0.5, color="white", linewidth=1.2)
