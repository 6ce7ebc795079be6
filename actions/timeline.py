"""A picture of a dynamic run: which elements were on after each reallocation."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from heterolora.files import whole
from heterolora.history import History

OFF, ON = "#e6e6ea", "#2a6f97"
MOST_LABELS = 60  # with more rows, labels would overlap: one label per block is shown


def timeline(path: Path, *histories: tuple[str, History]) -> None:
    """Draw elements × reallocations, with one panel per run. White lines separate blocks and epochs.

    Args:
        path: the PNG.
        histories: title and history of each run.
    """
    rows = max(len(history.places) for _, history in histories)
    height = min(max(3.0, 0.16 * rows), 40.0) + 1.2
    figure = Figure(figsize=(max(7.0, 5.5 * len(histories)), height), layout="constrained")
    panels = figure.subplots(1, len(histories), squeeze=False)[0]
    for panel, (title, history) in zip(panels, histories, strict=True):
        _draw(panel, title, history)
    handles = [matplotlib.patches.Patch(color=color, label=label) for color, label in ((ON, "on"), (OFF, "off"))]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    with whole(path) as unfinished:
        figure.savefig(unfinished, dpi=120)


def _draw(panel: matplotlib.axes.Axes, title: str, history: History) -> None:
    decisions, places = history.decisions, history.places
    on = np.array([decision.on for decision in decisions], dtype=float).T  # (elements, reallocations)
    colours = matplotlib.colors.ListedColormap([OFF, ON])
    panel.imshow(on, aspect="auto", interpolation="nearest", cmap=colours, vmin=0, vmax=1)
    panel.set_title(title)
    panel.set_xlabel("reallocation, at epoch:batch")
    steps = np.unique(np.linspace(0, len(decisions) - 1, min(len(decisions), 10)).astype(int))
    panel.set_xticks(steps, [f"{k}\n{decisions[k].epoch}:{decisions[k].step}" for k in steps], fontsize=7)
    every = [place.key for place in places]
    first_of_block = [i for i, place in enumerate(places) if i == 0 or places[i - 1].layer != place.layer]
    labelled = range(len(places)) if len(places) <= MOST_LABELS else first_of_block
    names = every if len(places) <= MOST_LABELS else [f"layer_{place.layer}" for place in places]
    panel.set_yticks(list(labelled), [names[i] for i in labelled], fontsize=7)
    for i in first_of_block[1:]:
        panel.axhline(i - 0.5, color="white", linewidth=1.2)
    for k in range(1, len(decisions)):
        if decisions[k].epoch != decisions[k - 1].epoch:
            panel.axvline(k - 0.5, color="white", linewidth=1.2)
