"""The pictures: which numbers they show, in which colours, what they frame, and how a page has them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from heterolora.choosing.history import Decision, History
from heterolora.elements.element import Place
from heterolora.pictures import drawing
from heterolora.pictures.drawing import Picture, figure_of, save, style
from heterolora.pictures.heat_map import HeatMap
from heterolora.pictures.line_chart import Line, LineChart
from heterolora.pictures.of_run import CURVE_PICTURE, of_history, of_ranks
from heterolora.pictures.scatter import Scatter
from heterolora.pictures.timeline import Timeline
from tests.world import ROOT
from tools.reporting.svg import inline

Values = dict[tuple[int, str], float]


def heat_map(values: Values, **more: object) -> HeatMap:
    return HeatMap("title", {Place(*place): value for place, value in values.items()}, **more)


def axes_of(picture: Picture) -> Axes:
    return figure_of(picture).axes[0]


def texts(labels: Iterable) -> list[str]:
    return [label.get_text() for label in labels]


def cells(picture: HeatMap) -> dict[tuple[str, str], str]:
    """(block, name) → the number shown."""
    axes = axes_of(picture)
    rows, columns = texts(axes.get_yticklabels()), texts(axes.get_xticklabels())
    at = {text: (rows[round(text.get_position()[1])], columns[round(text.get_position()[0])]) for text in axes.texts}
    return {place: text.get_text() for text, place in at.items()}


def shades(picture: HeatMap) -> list[float]:
    """The share of the darkest colour in each cell, in the order of the values."""
    return axes_of(picture).collections[0].get_facecolors()[:, 3].tolist()


def line_chart(*lines: Sequence[tuple[float, float]]) -> LineChart:
    return LineChart("loss", [Line(f"run{i}", style(i), points) for i, points in enumerate(lines)], "step")


class TestFile:
    def test_title_and_note(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        drawn: list[Figure] = []
        keep = Figure.savefig
        monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (drawn.append(figure), keep(figure, *a, **k)))
        path = tmp_path / "made" / "map.png"
        save(path, heat_map({(0, "q_proj"): 1.0}, label="rank", marked={"layer_0.q_proj"}, mark="chosen"))
        assert [file.name for file in path.parent.iterdir()] == ["map.png"]
        assert path.read_bytes().startswith(b"\x89PNG")
        assert drawn[0].axes[0].get_title() == "title"
        assert drawn[0].get_supxlabel() == "rank; framed: chosen"

    def test_two_side_by_side(self, tmp_path: Path) -> None:
        assert len(figure_of(heat_map({(0, "q_proj"): 1.0}), heat_map({(0, "w1"): 1.0})).axes) == 2


class TestHeatMap:
    def test_whole_numbers_as_they_are(self) -> None:
        picture = heat_map({(0, "q_proj"): 0.0, (0, "w1"): 12.0, (7, "q_proj"): 3.0})
        assert cells(picture) == {("0", "q_proj"): "0", ("0", "w1"): "12", ("7", "q_proj"): "3"}
        assert picture.note == ""

    def test_blocks_without_a_place_are_drawn_where_asked(self) -> None:
        picture = heat_map({(1, "q_proj"): 4.0}, blocks=3)
        assert texts(axes_of(picture).get_yticklabels()) == ["0", "1", "2"]
        assert cells(picture) == {("1", "q_proj"): "4"}

    def test_a_rank_of_0_is_off(self) -> None:
        (picture,) = of_ranks({Place(0, "q_proj"): 0.0, Place(1, "q_proj"): 4.0}, blocks=2).values()
        assert cells(picture) == {("0", "q_proj"): "off", ("1", "q_proj"): "4"}

    @pytest.mark.parametrize(
        ("values", "shown", "power"),
        [
            ((0.5, 0.123456, 0.0), ("0.5", "0.123", "0"), ""),
            ((1.23456e-5, 4e-6, 3e-9), ("1.23", "0.4", "3e-4"), "10⁻⁵"),
            ((9.876e300, 1e300, 0.0), ("9.88", "1", "0"), "10³⁰⁰"),
            ((123.4, 99.99, 1.5), ("123", "100", "1.5"), ""),
        ],
    )
    def test_others_by_three_digits(self, values: tuple[float, ...], shown: tuple[str, ...], power: str) -> None:
        names = ("q_proj", "k_proj", "v_proj")
        picture = heat_map({(0, name): value for name, value in zip(names, values, strict=True)}, label="score")
        assert tuple(cells(picture).values()) == shown
        assert picture.note.partition(";")[0] == (f"score, numbers × {power}" if power else "score")

    def test_blocks_and_names_in_order_whatever_comes_first(self) -> None:
        axes = axes_of(heat_map({(3, "shortcut2"): 1, (1, "gate"): 2, (0, "residual1"): 3, (1, "q_proj"): 4}))
        assert texts(axes.get_yticklabels()) == ["0", "1", "3"]
        assert texts(axes.get_xticklabels()) == ["q_proj", "gate", "residual1", "shortcut2"]

    def test_frames(self) -> None:
        values = {(0, "q_proj"): 1.0, (1, "q_proj"): 2.0, (1, "w2"): 3.0}
        picture = heat_map(values, marked={"layer_1.w2"}, mark="chosen")
        axes = axes_of(picture)
        (frame,) = axes.collections[1].get_paths()
        assert [round(middle) for middle in frame.get_extents().corners().mean(axis=0)] == [1, 1]
        assert texts(text for text in axes.texts if text.get_fontweight() == "bold") == ["3"]
        assert picture.note == "framed: chosen"

    def test_colours_show_the_logarithm_of_wide_spans(self) -> None:
        for values, expected, wide in (
            ((0.0, 1.0, 2.0, 4.0), (0, 0.25, 0.5, 1), False),
            ((0.0, 1.0, 100.0, 1e4), (0, 0.06, 0.53, 1), True),
            ((0.0, 0.0), (0, 0), False),
        ):
            picture = heat_map({(layer, "q_proj"): value for layer, value in enumerate(values)})
            np.testing.assert_allclose((np.array(shades(picture)) - 0.05) / 0.95, expected, atol=1e-9)
            assert ("logarithm" in picture.note) == wide

    def test_colours_are_those_of_the_maps_beside_it(self) -> None:
        assert shades(heat_map({(0, "q_proj"): 2.0}, beside=[4.0])) == pytest.approx([0.05 + 0.95 / 2])

    def test_numbers_can_be_read_on_every_colour(self) -> None:
        picture = heat_map({(layer, "q_proj"): float(layer) for layer in range(60)})
        inks = {drawing.INK: "ink", drawing.SURFACE: "surface"}
        for theme in themes():
            for share, text in zip(shades(picture), axes_of(picture).texts, strict=True):
                cell = share * np.array(to_rgb(theme["heat"])) + (1 - share) * np.array(to_rgb(theme["surface"]))
                assert contrast(cell, to_rgb(theme[inks[text.get_color()]])) > 3.5


class TestTimeline:
    @pytest.mark.parametrize("layers", [3, 140])
    def test_bars_and_labels(self, layers: int) -> None:
        places = tuple(Place(layer, "q_proj") for layer in range(layers))
        on = [[(place.layer + k) % 3 > 0 for place in places] for k in range(4)]
        when = [(0, 0), (0, 5), (1, 0), (1, 5)]
        decisions = [Decision(*when[k], (1.0,) * layers, tuple(on[k])) for k in range(4)]
        axes = axes_of(Timeline("run", History(places, decisions)))
        (bars,) = axes.patches
        for row in range(layers):
            assert [bars.get_path().contains_point((k, row)) for k in range(4)] == [each[row] for each in on]
        assert texts(axes.get_xticklabels()) == ["0\n0:0", "1\n0:5", "2\n1:0", "3\n1:5"]
        label = "layer_0.q_proj  2 of 4" if layers == 3 else "layer 0"
        assert texts(axes.get_yticklabels())[0] == label
        assert [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"] == [1.5], "a new epoch"

    def test_a_run_that_turned_nothing_on(self, tmp_path: Path) -> None:
        history = History((Place(0, "q_proj"),), [Decision(0, 0, (1.0,), (False,))])
        save(tmp_path / "timeline.png", Timeline("run", history))
        (tip,) = Timeline("run", history).tips()
        assert tip.text == "layer_0.q_proj: on after 0 of 1 reallocations"


class TestLineChart:
    @pytest.mark.parametrize(
        ("values", "axis"),
        [
            ((6.0, 6.0, 6.0), [3.0, 9.0]),
            ((0.3, 0.3 + 1e-13), [0.15, 0.45]),
            ((1e-4, 1e-4), [5e-5, 1.5e-4]),
            ((0.0, 0.0), [-1.0, 1.0]),
            ((-2.0,), [-3.0, -1.0]),
        ],
    )
    def test_a_constant_series_has_an_axis_around_it_and_one_tick(self, values: tuple, axis: list[float]) -> None:
        axes = axes_of(line_chart([*enumerate(values)]))
        assert list(axes.get_ylim()) == pytest.approx(axis)
        assert axes.get_yticks() == pytest.approx(values[:1])

    def test_other_axes_reach_from_the_lowest_to_the_highest(self) -> None:
        axes = axes_of(line_chart([(0, 1.0), (1, 1.1)], [(90, 1.0)]))
        assert axes.get_ylim() == pytest.approx((1.0, 1.1), abs=0.02)
        assert len(axes.get_yticks()) > 2

    def test_steps_have_whole_ticks(self) -> None:
        assert [float(x).is_integer() for x in axes_of(line_chart([(0, 1.0), (3, 2.0)])).get_xticks()].count(False) == 0

    def test_long_curves_keep_their_shape(self) -> None:
        (line,) = axes_of(line_chart([(i, i / 10_000) for i in range(10_000)])).lines
        x, y = line.get_data()
        assert 100 < len(x) <= 240
        assert np.all(np.diff(x) > 0)
        np.testing.assert_allclose(y, x / 10_000)

    def test_a_band_and_bars(self) -> None:
        x = range(1000)
        line = Line("arm", style(0), [(i, i) for i in x], low=[i - 1 for i in x], high=[i + 1 for i in x])
        axes = axes_of(LineChart("loss", [line], "step"))
        (path,) = axes.collections[0].get_paths()
        assert path.contains_points([(500, 500.5), (500, 499.5), (500, 502), (500, 498)]).tolist() == [
            True,
            True,
            False,
            False,
        ]
        points = replace(line, points=[(1, 2), (3, 4)], low=[1, 3], high=[3, 5], joined=False, names=["a", "b"])
        axes = axes_of(LineChart("loss", [points], "step"))
        assert [path.vertices.tolist() for path in axes.collections[0].get_paths()] == [
            [[1, 1], [1, 3]],
            [[3, 3], [3, 5]],
        ]
        assert [text.get_text() for text in axes.texts] == ["a", "b"]

    def test_equal_estimates_leave_their_intervals_room(self) -> None:
        line = Line("arm", style(0), [(0, 0.5)], low=[0.1], high=[0.9], joined=False)
        low, high = axes_of(LineChart("accuracy", [line], "seconds")).get_ylim()
        assert low < 0.1 < 0.9 < high

    def test_a_value_that_is_no_number_has_no_tip(self) -> None:
        assert inline(line_chart([(0, 1.0), (1, float("nan")), (2, 2.0)])).count("<title>") == 2

    def test_lines_differ_by_more_than_colour(self) -> None:
        lines = axes_of(line_chart(*([(0, i), (1, i)] for i in range(8)))).lines
        assert len({line.get_marker() for line in lines}) == 8
        assert len({line.get_linestyle() for line in lines}) == 4


def themes() -> list[dict[str, str]]:
    """The colours of the page's style: name → colour, for light and for dark."""
    light, dark = re.findall(r":root \{(.*?)\}", (ROOT / "tools/reporting/style.css").read_text(), re.DOTALL)
    return [dict(re.findall(r"--(\w+): (#\w+)", rules)) for rules in (light, dark)]


def linear(colour: Iterable[float]) -> np.ndarray:
    values = np.array([*colour])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one: Iterable[float], other: Iterable[float]) -> float:
    """As WCAG 2 defines it."""
    low, high = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


# Machado, Oliveira and Fernandes 2009, table 1: severity 1.0.
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear RGB."""
    x, y, z = np.cbrt(np.clip(TO_XYZ @ rgb / [0.9505, 1, 1.089], 0.008856, None))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


class TestColours:
    def test_styles_differ(self) -> None:
        assert len({(each.colour, each.sign) for each in map(style, range(32))}) == 32

    @pytest.mark.parametrize("sight", [np.eye(3), DEUTERANOPIA], ids=["normal", "deuteranopia"])
    def test_colours_of_lines_differ(self, sight: np.ndarray) -> None:
        seen = [lab(np.clip(sight @ linear(to_rgb(style(i).colour)), 0, 1)) for i in range(8)]
        assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 20

    def test_lines_and_frames_differ_from_the_paper(self) -> None:
        for theme in themes():
            for colour in (*(style(i).colour for i in range(8)), theme["frame"], theme["soft"]):
                assert contrast(to_rgb(colour), to_rgb(theme["surface"])) > 3

    def test_files_have_the_colours_of_the_light_theme(self) -> None:
        for name in ("ink", "soft", "line", "surface", "heat", "frame"):
            assert to_rgb(themes()[0][name]) == to_rgb(getattr(drawing, name.upper()))


class TestInAPage:
    def test_colours_are_those_of_the_page(self) -> None:
        svg = inline(heat_map({(0, "q_proj"): 1.0, (0, "w1"): 2.0}, marked={"layer_0.w1"}))
        used = set(re.findall(r"var\(--(\w+)\)", svg))
        assert {"heat", "frame", "soft", "ink"} <= used <= set(themes()[0])
        assert "#" not in re.sub(r'(?:href="|url\(|id=")#?\w+', "", svg), "no colour of its own"

    @pytest.mark.parametrize(
        ("picture", "shown"),
        [
            (heat_map({(0, "q_proj"): 1.0, (0, "w1"): 2.5}, label="rank", marked={"layer_0.w1"}),
             ["layer_0.q_proj: rank 1", "layer_0.w1: rank 2.5, on"]),
            (Scatter("two", {Place(0, "w1"): (1.0, 1e-4)}, ("a", "b"), {"layer_0.w1"}),
             ["layer_0.w1: 1 and 0.0001, on"]),
            (line_chart([(0, 0.5), (12_000, 0.25)]), ["run0: 0.5 at step 0", "run0: 0.25 at step 12,000"]),
            (Timeline("run", History((Place(0, "w1"),), [Decision(0, k, (1.0,), (k != 2,)) for k in range(4)])),
             ["layer_0.w1: on after 3 of 4 reallocations: 0–1, 3"]),
        ],
    )  # fmt: skip
    def test_values_are_shown_under_the_pointer(self, picture: Picture, shown: list[str]) -> None:
        assert re.findall("<title>(.*?)</title>", inline(picture)) == shown

    def test_tips_lie_over_the_cells(self) -> None:
        svg = inline(heat_map({(layer, name): layer for layer in range(3) for name in ("q_proj", "w1")}, label="x"))
        numbers = {(float(x), float(y)): text for x, y, text in re.findall(r'x="(\S+)" y="(\S+)">(\d)</text>', svg)}
        rects = re.findall(r'<rect x="(\S+)" y="(\S+)" width="(\S+)" height="(\S+)"><title>\S+ x (\d)', svg)
        for x, y, width, height, value in ((*map(float, rect[:4]), rect[4]) for rect in rects):
            inside = [t for (a, b), t in numbers.items() if x < a < x + width and y < b < y + height]
            assert inside == [value]
        assert len(rects) == 6

    def test_names_are_no_markup(self) -> None:
        picture = LineChart("<b>", [Line("<i>&", style(0), [(0, 1.0), (1, 2.0)])], "step")
        assert "<b>" not in inline(picture)
        assert "<i>" not in inline(picture)

    def test_two_pictures_share_no_name(self) -> None:
        first, second = (set(re.findall(r' id="(\w+)"', inline(line_chart([(0, 0), (1, n)])))) for n in (1, 2))
        assert first
        assert not first & second


def test_the_curve_of_a_search_that_shrinks_has_steps() -> None:
    """What is on stays on until the next decision. A search that has the budget from the start has no curve."""
    places = (Place(0, "q_proj"), Place(0, "v_proj"), Place(1, "q_proj"))
    states = {0: (True, True, True), 5: (True, False, True), 6: (True, False, False)}
    history = History(places, [Decision(0, step, (0.0, 0.0, 0.0), on) for step, on in states.items()])
    (line,) = axes_of(of_history(history, "run")[CURVE_PICTURE]).lines
    assert line.get_xydata().tolist() == [[0, 3], [5, 3], [5, 2], [6, 2], [6, 1]]
    assert CURVE_PICTURE not in of_history(replace(history, decisions=history.decisions[1:]), "run")
