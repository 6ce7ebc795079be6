"""The heat map: which numbers it shows, in which colours, and what it frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from actions.result.pictures import heat_map
from heterolora.elements.element import Place


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Draws, and gives back the figure."""
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (figures.append(figure), save(figure, *a, **k)))

    def draw(values: dict[tuple[int, str], float], **more: object) -> Figure:
        path = tmp_path / "made" / "map.png"
        heat_map(path, {Place(*place): value for place, value in values.items()}, "title", **more)
        assert [file.name for file in path.parent.iterdir()] == ["map.png"]
        assert path.read_bytes().startswith(b"\x89PNG")
        return figures[-1]

    return draw


def cells(figure: Figure) -> dict[tuple[str, str], str]:
    """(block, name) → the number shown."""
    axes = figure.axes[0]
    rows, columns = (
        [label.get_text() for label in labels] for labels in (axes.get_yticklabels(), axes.get_xticklabels())
    )
    at = {text: (rows[round(text.get_position()[1])], columns[round(text.get_position()[0])]) for text in axes.texts}
    return {place: text.get_text() for text, place in at.items()}


def scale(figure: Figure) -> str:
    return figure.axes[1].get_ylabel()


def test_whole_numbers_as_they_are(drawn) -> None:
    figure = drawn({(0, "q_proj"): 0.0, (0, "w1"): 12.0, (7, "q_proj"): 3.0})
    assert cells(figure) == {("0", "q_proj"): "0", ("0", "w1"): "12", ("7", "q_proj"): "3"}
    assert scale(figure) == ""


def test_blocks_without_a_place_are_drawn_where_asked(drawn) -> None:
    figure = drawn({(1, "q_proj"): 4.0}, blocks=3)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0", "1", "2"]
    assert cells(figure) == {("1", "q_proj"): "4"}


@pytest.mark.parametrize(
    ("values", "shown", "power"),
    [
        ((0.5, 0.123456, 0.0), ("0.5", "0.123", "0"), ""),
        ((1.23456e-5, 4e-6, 3e-9), ("1.23", "0.4", "3e-4"), "$10^{-5}$"),
        ((9.876e300, 1e300, 0.0), ("9.88", "1", "0"), "$10^{300}$"),
        ((123.4, 99.99, 1.5), ("123", "100", "1.5"), ""),
    ],
)
def test_others_by_three_digits(drawn, values, shown, power) -> None:
    names = ("q_proj", "k_proj", "v_proj")
    figure = drawn({(0, name): value for name, value in zip(names, values, strict=True)}, label="score")
    assert tuple(cells(figure).values()) == shown
    assert scale(figure) == (f"score, numbers in the cells × {power}" if power else "score")


def test_blocks_and_names_in_order_whatever_comes_first(drawn) -> None:
    figure = drawn({(3, "shortcut2"): 1.0, (1, "gate"): 2.0, (0, "residual1"): 3.0, (1, "q_proj"): 4.0})
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "1", "3"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["q_proj", "gate", "residual1", "shortcut2"]


def test_frames(drawn) -> None:
    figure = drawn({(0, "q_proj"): 1.0, (1, "q_proj"): 2.0, (1, "w2"): 3.0}, marked={"layer_1.w2"}, mark="chosen")
    axes = figure.axes[0]
    (frame,) = axes.patches
    assert (round(frame.get_x() + frame.get_width() / 2), round(frame.get_y() + frame.get_height() / 2)) == (1, 1)
    assert [text.get_text() for text in axes.texts if text.get_fontweight() == "bold"] == ["3"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["chosen"]
    assert not drawn({(0, "q_proj"): 1.0}).legends


def test_colours_show_the_logarithm_of_wide_spans(drawn) -> None:
    def shades(*values: float) -> np.ndarray:
        figure = drawn({(layer, "q_proj"): value for layer, value in enumerate(values)})
        return np.asarray(figure.axes[0].images[0].norm(np.array(values)))

    np.testing.assert_allclose(shades(0.0, 1.0, 2.0, 4.0), [0, 0.25, 0.5, 1])
    np.testing.assert_allclose(shades(0.0, 1e-3, 1.0, 1e3), [0, 0, 0.5, 1], atol=1e-12)
    np.testing.assert_allclose(shades(0.0, 0.0), [0, 0])
