"""The report: what it says, what it marks, and that a browser shows it without any other file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest

from actions.run.run_folder import METRICS, write_config, write_json
from heterolora.choosing import scores as scores_file
from heterolora.choosing.history import FREQUENCY, HISTORY
from heterolora.choosing.step_time import StepTime
from heterolora.common.errors import UserError
from heterolora.elements.config import ElementConfig
from heterolora.elements.element import NAMES, Place, Settings
from heterolora.pictures.drawing import number
from options.every import Options, changed
from tests import chromium
from tests.mistakes import refusal
from tests.run_folders import (
    curves,
    dynamic_run,
    element_scores,
    scored_run,
    trained_run,
    write_csv,
    write_history,
    write_metrics,
    write_result,
    write_tensorboard,
)
from tests.world import ROOT, World
from tests.world import main as program
from tools.report import main
from tools.reporting.comparison import better, comparison, facts, groups
from tools.reporting.curves import read_curves
from tools.reporting.page import View, curve_charts
from tools.reporting.parts.agreement import overlap, spearman
from tools.reporting.run import read_runs

_VOID = {"meta", "link", "wbr", "br", "hr", "img", "input"}


@dataclass
class Node:
    """An element of a page."""

    tag: str
    attributes: dict[str, str | None]
    children: list[Node | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        if self.tag in ("script", "style"):
            return ""
        pieces = [child if isinstance(child, str) else child.text for child in self.children]
        return re.sub(r"\s+", " ", "".join(pieces)).strip()

    def all(self, tag: str, **attributes: str) -> list[Node]:
        """Every element of that name below, in order, with all the given words in its attributes."""
        below = [child for child in self.children if isinstance(child, Node)]
        found = [node for child in below for node in (child, *child.all("*"))]
        fitting = [node for node in found if tag in ("*", node.tag)]
        words = {name.rstrip("_"): word for name, word in attributes.items()}
        return [n for n in fitting if all(word in (n.attributes.get(a) or "").split() for a, word in words.items())]


class _Reader(HTMLParser):
    """Builds the tree, and refuses a page whose tags don't match."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Node("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, dict(attrs))
        self.open[-1].children.append(node)
        if tag not in _VOID:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Node(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def report(tmp_path: Path, *runs: Path) -> Node:
    main([*map(str, runs), "--output", str(tmp_path / "report.html")])
    reader = _Reader()
    reader.feed((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert [node.tag for node in reader.open] == [""]
    return reader.root


def tips(figure: Node) -> list[str]:
    """What is shown under the pointer."""
    return [title.text for title in figure.all("title")]


def heat_maps(page: Node) -> list[Node]:
    """The figures that have a number in each cell."""
    shown = re.compile(r"layer_\d+\.\w+: (rank|times on|\w+ score) \S+")
    return [figure for figure in page.all("figure") if shown.match("".join(tips(figure)[:1]))]


def cells_of(figure: Node) -> dict[str, tuple[str, bool]]:
    """Key of the element → the text of its cell, and whether the cell has a frame; the tips agree."""
    texts = [(*_numbers(node, "x", "y"), node.text) for node in figure.all("text")]
    paths = [node for node in figure.all("path") if "var(--frame)" in node.attributes["style"]]
    frames = [[float(word) for word in path.attributes["d"].split() if word not in "MLz"] for path in paths]
    cells = {}
    for rect in figure.all("rect"):
        x, y, width, height = _numbers(rect, "x", "y", "width", "height")
        (text,) = (text for a, b, text in texts if x < a < x + width and y < b < y + height)
        framed = any(
            x < sum(f[::2]) / (len(f) / 2) < x + width and y < sum(f[1::2]) / (len(f) / 2) < y + height for f in frames
        )
        key, _, about = rect.text.partition(": ")
        assert about.endswith(", on") == framed
        cells[key] = (text, framed)
    assert len(frames) == sum(on for _, on in cells.values())
    return cells


def _numbers(node: Node, *names: str) -> list[float]:
    return [float(node.attributes[name]) for name in names]


def columns_of(figure: Node) -> set[str]:
    return {node.text for node in figure.all("text")} & set(NAMES)


def shades_of(figure: Node) -> set[float]:
    """How dark the cells are, from 0 to 1."""
    styles = (node.attributes["style"] for node in figure.all("path"))
    return {
        float(re.search(r"opacity: ([\d.]+)", text)[1]) if "opacity" in text else 1.0
        for text in styles
        if "--heat" in text
    }


def curves_of(*folders: Path) -> dict[str, list[list[tuple[float, float]]]]:
    """Name → the points of each run's line."""
    runs = read_runs(folders)
    charts = curve_charts([View.of(run, position, runs) for position, run in enumerate(runs)])
    return {chart.picture.title: [list(line.points) for line in chart.picture.lines] for chart in charts}


def as_counted(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Points of a logger with the steps of the terminal, of which the first is 1."""
    return [(step + 1, value) for step, value in points]


def rows_of(table: Node) -> dict[str, list[Node]]:
    """First cell's text → the other cells of each row."""
    found = {}
    for row in table.all("tr"):
        first, *others = [child for child in row.children if isinstance(child, Node)]
        found[first.text] = others
    return found


class TestOneRun:
    def test_its_figures(self, tmp_path: Path) -> None:
        page = report(tmp_path, trained_run(tmp_path / "first", loss=0.9))
        assert page.all("h1")[0].text == "first"
        (table,) = page.all("table", class_="compare")
        rows = rows_of(table)
        assert rows["model"][0].text == "lora"
        assert rows["trainable parameters"][0].text == "12,288"
        assert rows["of all"][0].text == "0.00371%"
        assert [row[0].text for name, row in rows.items() if name in ("loss", "accuracy")] == ["0.2903", "0.8100"]
        assert not page.all("td", class_="best"), "there is nothing to compare"
        assert [tile.all("b")[0].text for tile in page.all("div", class_="tile")] == ["0.8200", "12,288"]

    def test_no_place_is_framed_if_all_are_on(self, tmp_path: Path) -> None:
        places = [Place(layer, "w1") for layer in range(3)]
        write_result(trained_run(tmp_path, logger="none"), places, frozenset(place.key for place in places))
        (shown,) = heat_maps(page := report(tmp_path, tmp_path))
        assert not any(framed for _, framed in cells_of(shown).values())
        assert "The rank of each element of the result. 3 of 3 places on, in every block." in page.text

    def test_the_headline_is_the_metric_that_selected(self, tmp_path: Path) -> None:
        """CoLA is selected by Matthews' correlation, although accuracy is measured first."""
        folder = trained_run(tmp_path / "first", dataset="cola", logger="none")
        write_metrics(folder, validation={"loss": 0.6, "accuracy": 0.69, "matthews": 0.0})
        tile = report(tmp_path, folder).all("div", class_="tile")[0]
        assert tile.text == "0.0000matthewson validation, of the best checkpoint"
        for name, options, which in (
            ("last", {"measured": "last"}, ", of the last checkpoint"),
            ("tested", {"action": "test"}, ""),
        ):
            folder = trained_run(tmp_path / name, logger="none", **options)
            assert report(tmp_path, folder).all("div", class_="tile")[0].text.endswith(f"on validation{which}")

    def test_its_curves(self, tmp_path: Path) -> None:
        page = report(tmp_path, folder := trained_run(tmp_path / "first", logger="csv"))
        names = [figure.all("figcaption")[0].text for figure in page.all("figure")]
        assert names == ["train/loss", "validation/loss", "validation/accuracy", "learning_rate/matrices"]
        assert curves_of(folder) == {name: [as_counted(points)] for name, points in curves(160, 0.9, 0).items()}
        for figure in page.all("figure"):
            assert "optimizer step" in [node.text for node in figure.all("text")]
        points = as_counted(curves(160, 0.9, 0)["validation/accuracy"])
        step, best = max(points, key=lambda point: point[1])
        said = page.all("figure")[2].all("p", class_="legend")[0].text
        assert said == f"●last {points[-1][1]:.4g}, best {best:.4g} at step {step}"

    def test_its_parameters_and_options(self, tmp_path: Path) -> None:
        page = report(tmp_path, trained_run(tmp_path / "first", learning_rate=3e-4))
        (table,) = page.all("table", class_="plain")
        rows = rows_of(table)
        assert [cell.text for cell in rows["lora"]] == ["q_proj", "6 of 8", "4", "12,288", "12,288"]
        assert [cell.text for cell in rows["all"]] == ["", "", "", "12,288", "331,200,000"]
        own = {node.all("dt")[0].text: node.all("dd")[0].text for node in page.all("div", class_="set")}
        assert own["--learning-rate"] == "0.0003"
        assert "--batch-size" not in own
        every = [node.text for node in page.all("dt")]
        assert "optimisation" in [node.text for node in page.all("dt", class_="group")]
        assert "--batch-size" in every
        assert "--realloc-N" not in every, "it has no effect on train"

    def test_every_run_says_how_to_repeat_it(self, tmp_path: Path) -> None:
        folder = trained_run(tmp_path / "first")
        assert f"python -m main train --config {folder}/config.toml" in report(tmp_path, folder).text

    def test_its_versions(self, tmp_path: Path) -> None:
        assert "torch 2.13.0, transformers 5.24.0" in report(tmp_path, trained_run(tmp_path / "first")).text

    def test_nothing_comes_from_elsewhere(self, tmp_path: Path) -> None:
        page = report(tmp_path, dynamic_run(tmp_path / "dynamic"), scored_run(tmp_path / "scored"))
        (policy,) = [m for m in page.all("meta") if m.attributes.get("http-equiv") == "Content-Security-Policy"]
        allowed = {rule.strip() for rule in policy.attributes["content"].split(";")}
        assert allowed == {"default-src 'none'", "img-src data:", "style-src 'unsafe-inline'"}, "nothing from a network"
        assert not page.all("script")
        for node in page.all("*"):
            for name in ("src", "href", "srcset", "data", "action"):
                address = node.attributes.get(name) or ""
                assert address.startswith(("#", "data:")) or not address, address
            assert "url(" not in (node.attributes.get("style") or "")
        text = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert "http" not in text.replace("http-equiv", "")
        assert "@import" not in text
        assert set(re.findall(r"url\((.)", text)) <= {"#"}
        anchors = {node.attributes["href"] for node in page.all("a")}
        assert anchors == {f"#{node.attributes['id']}" for node in page.all("section")}

    @pytest.mark.slow
    def test_it_is_small(self, tmp_path: Path) -> None:
        """Four searches in all places of 24 blocks, with 40 reallocations each."""
        report(tmp_path, *(dynamic_run(tmp_path / f"run{i}", 24, [k // 10 for k in range(40)]) for i in range(4)))
        assert (tmp_path / "report.html").stat().st_size < 1.5e6

    def test_names_are_no_markup(self, tmp_path: Path) -> None:
        page = report(tmp_path, trained_run(tmp_path / "a<b>&c", model="<i>opt</i>"))
        assert page.all("h1")[0].text == "a<b>&c"
        assert not page.all("i")


class TestSideBySide:
    @pytest.fixture
    def three(self, tmp_path: Path) -> list[Path]:
        folders = [trained_run(tmp_path / f"run{i}", seed=i, loss=0.9 - i / 10, logger="none") for i in range(3)]
        write_metrics(folders[0], validation={"loss": 0.5, "accuracy": 0.8, "perplexity": 3.0})
        write_metrics(folders[1], validation={"loss": 0.4, "accuracy": 0.8, "perplexity": 2.0}, test={"rouge1": 0.1})
        write_metrics(folders[2], validation={"loss": 0.6, "accuracy": 0.7, "matthews": None})
        return folders

    def test_the_best_of_each_row_is_marked(self, tmp_path: Path, three: list[Path]) -> None:
        page = report(tmp_path, *three)
        table, _over_seeds = page.all("table", class_="compare")
        marked = {
            name: [index for index, cell in enumerate(cells) if "best" in (cell.attributes.get("class") or "")]
            for name, cells in rows_of(table).items()
        }
        assert marked["loss ↓"] == [1]
        assert marked["accuracy ↑"] == [0, 1], "equal values are equally good"
        assert marked["perplexity ↓"] == [1]
        assert marked["trainable parameters ↓"] == [0]
        assert marked["rouge1 ↑"] == [], "one value is the best of nothing"
        assert marked["of all"] == marked["model"] == []
        rows = rows_of(table)
        assert [cell.text for cell in rows["perplexity ↓"]] == ["3.0000", "★ 2.0000", "–"]
        assert all(cell.text.startswith("★") for cell in table.all("td", class_="best"))

    def test_equal_values_are_no_best(self, three: list[Path]) -> None:
        for folder in three:
            write_metrics(folder, validation={"accuracy": 0.5})
        (row,) = comparison(read_runs(three))["validation"]
        assert not any(cell.best for cell in row.cells)

    def test_the_best_is_marked_among_runs_of_one_task(self, three: list[Path]) -> None:
        (three[1] / "config.toml").unlink()
        trained_run(three[1], dataset="cola", logger="none")
        for folder, accuracy in zip(three, (0.6, 0.9, 0.5), strict=True):
            write_metrics(folder, validation={"accuracy": accuracy})
        figures = comparison(read_runs(three))
        assert [cell.best for cell in figures["validation"][0].cells] == [True, False, False]

    def test_time_and_memory(self, three: list[Path]) -> None:
        for folder, seconds in zip(three[:2], (45.25, 725.0), strict=True):
            resources = {"train_seconds": seconds, "step_seconds": 0.5, "peak_memory_bytes": 3 * 2**29}
            write_json(folder / METRICS, {"metrics": {}, "resources": resources})
        rows = {row.label: [cell.text for cell in row.cells] for row in comparison(read_runs(three))["training"]}
        assert rows == {
            "training time": ["45.2 s", "12 min 5 s", "–"],
            "median step": ["0.5 s", "0.5 s", "–"],
            "peak memory": ["1.5 GiB", "1.5 GiB", "–"],
        }

    def test_options_of_other_actions_are_left_out(self, tmp_path: Path) -> None:
        folders = [trained_run(tmp_path / name, logger="none") for name in ("a", "b")]
        folders.append(trained_run(tmp_path / "c", "train-dyrealloc", logger="none", realloc_N=3))
        trained_run(folders[1], logger="none", realloc_N=5, turn_on_percentile=0.5)
        assert not [
            row.label for row in facts(read_runs(folders)) if row.label in ("--realloc-N", "--turn-on-percentile")
        ]

    def test_maps_of_several_runs_can_be_compared(self, tmp_path: Path) -> None:
        """The same columns, and the same colour for the same value."""
        folders = [dynamic_run(tmp_path / name, layers=3, logger="none") for name in ("one", "two")]
        result = [Place(layer, name) for layer in range(3) for name in ("q_proj", "w1")]
        write_result(folders[1], result, frozenset({"layer_0.q_proj", "layer_0.w1"}))
        config = (folders[1] / "lora.toml").read_text()
        (folders[1] / "lora.toml").write_text(config.replace("r = 8", "r = 4"))
        first, _, second, _ = heat_maps(page := report(tmp_path, *folders))
        assert columns_of(first) == columns_of(second) > {"q_proj", "w1"}
        assert max(shades_of(first)) == 1.0
        assert shades_of(second) == {0.05, 0.52}, "rank 4 of 8"
        (warning,) = page.all("p", class_="warning")
        assert warning.text.startswith("Block 0 holds everything that is on")
        assert "2 of 6, all in block 0" in page.text

    def test_maps_of_other_models_have_columns_and_colours_of_their_own(self, tmp_path: Path) -> None:
        for name, shortcuts, base in (("opt", True, "one"), ("roberta", False, "two")):
            scored_run(tmp_path / name, layers=3, shortcuts=shortcuts)
            file = tmp_path / name / "config.toml"
            file.write_text(f'load = "{base}"\n{file.read_text()}')
        first, second = heat_maps(report(tmp_path, tmp_path / "opt", tmp_path / "roberta"))
        assert len(columns_of(first)) == 10
        assert len(columns_of(second)) == 6
        assert max(shades_of(second)) == 1.0

    def test_options_without_effect_are_left_out(self, tmp_path: Path) -> None:
        folders = [
            trained_run(tmp_path / str(batches), logger="none", imp_limit_test_batches=batches) for batches in (4, 8)
        ]
        assert "--imp-limit-test-batches" not in [row.label for row in facts(read_runs(folders))]

    def test_options_that_differ_are_listed(self, tmp_path: Path) -> None:
        runs = read_runs(
            [trained_run(tmp_path / "a", logger="none"), trained_run(tmp_path / "b", logger="none", max_steps=9)]
        )
        labels = ["action", "date", "model", "base", "data set", "task", "--max-steps"]
        assert [row.label for row in facts(runs)] == labels
        assert [cell.text for cell in facts(runs)[-1].cells] == ["-1", "9"]

    def test_date_rows_and_versions_of_each_run(self, tmp_path: Path) -> None:
        folders = [trained_run(tmp_path / name, logger="none") for name in "ab"]
        os.utime(folders[0] / "config.toml", (1_700_000_000, 1_700_000_000))
        for folder, torch in zip(folders, ("2.12", "2.13"), strict=True):
            rows = {"training": 1200, "validation": 60} if torch == "2.13" else {}
            versions = {"torch": torch, "datasets": "4"}
            write_json(folder / METRICS, {"metrics": {}, "rows": rows, "versions": versions})
        found = {row.label: [cell.text for cell in row.cells] for row in facts(read_runs(folders))}
        assert found["date"][0] == f"{datetime.fromtimestamp(1_700_000_000):%Y-%m-%d %H:%M}"
        assert found["rows"] == ["–", "1,200 training, 60 validation"]
        assert found["torch"] == ["2.12", "2.13"]
        assert "datasets" not in found

    def test_losses_of_different_kinds_are_apart(self, tmp_path: Path) -> None:
        """They share no chart and no row, because a squared error and a cross-entropy cannot be compared."""
        kinds = {
            "squared error": {"dataset": "stsb"},
            "binary cross-entropy": {"dataset": "own.csv", "multi_label": True, "labels": "a,b"},
            "cross-entropy of classes": {"dataset": "sst2"},
            "cross-entropy of tokens": {"dataset": "wikitext2", "task": "causal_language_modeling"},
        }
        folders = [trained_run(tmp_path / kind, logger="csv", **options) for kind, options in kinds.items()]
        charts = curves_of(*folders)
        for name in ("train/loss", "validation/loss"):
            assert [title for title in charts if title.startswith(name)] == [
                f"{name} ({kind})" for kind in sorted(kinds)
            ]
            assert all(len(charts[f"{name} ({kind})"]) == 1 for kind in kinds)
        assert len(charts["validation/accuracy"]) == 4
        rows = {row.label: [cell.text for cell in row.cells] for row in comparison(read_runs(folders))["validation"]}
        for place, kind in enumerate(kinds):
            assert [text == "–" for text in rows[f"loss ({kind})"]] == [other != place for other in range(4)]
        assert "loss" not in rows
        assert {"train/loss", "validation/loss"} <= {*curves_of(folders[2])}, "one kind needs no name"

    def test_one_chart_has_a_line_for_each_run(self, tmp_path: Path) -> None:
        page = report(tmp_path, *(trained_run(tmp_path / f"run{i}", seed=i, logger="csv") for i in range(3)))
        first = page.all("figure")[0]
        assert list(dict.fromkeys(tip.split(":")[0] for tip in tips(first))) == ["run0", "run1", "run2"]
        legend = first.all("p", class_="legend")
        assert [item.text.split(":")[0] for item in legend] == ["●run0", "■run1", "▲run2"]
        lines = (re.search(r"fill: none;.* stroke: (#\w+)", node.attributes["style"]) for node in first.all("path"))
        drawn = [line[1] for line in lines if line]
        colours = [item.all("span", class_="dot")[0].attributes["style"].removeprefix("color: ") for item in legend]
        assert list(dict.fromkeys(drawn)) == colours
        assert len(set(colours)) == 3

    def test_a_run_has_one_colour_everywhere(self, tmp_path: Path) -> None:
        folders = [trained_run(tmp_path / f"run{i}", logger="none") for i in range(2)]
        write_csv(folders[1], {"train/loss": [(0, 1.0)]})
        page = report(tmp_path, *folders)
        dots = [page.all("figure")[0], page.all("section")[-1].all("h2")[0]]
        one, other = (place.all("span", class_="dot")[0] for place in dots)
        assert (one.text, one.attributes) == (other.text, other.attributes)

    def test_mean_and_spread_of_runs_that_differ_by_seed_alone(self, tmp_path: Path) -> None:
        folders = [trained_run(tmp_path / f"low-{i}", seed=i, logger="none") for i in range(3)]
        folders += [trained_run(tmp_path / f"high-{i}", seed=i, logger="none", learning_rate=0.1) for i in range(2)]
        folders.insert(1, trained_run(tmp_path / "alone", logger="none", optimizer="sgd"))
        accuracies = (0.5, 0.55, 0.6, 0.85, 0.8, 0.7)
        for folder, accuracy in zip(folders, accuracies, strict=True):
            f1 = None if folder.name == "low-1" else accuracy
            write_metrics(folder, validation={"accuracy": accuracy, "f1": f1})
        page = report(tmp_path, *folders)
        _, table = page.all("table", class_="compare")
        assert [cell.text for cell in table.all("thead")[0].all("th")[1:]] == ["low3 runs", "alone1 run", "high2 runs"]
        rows = {name: [cell.text for cell in cells] for name, cells in rows_of(table).items()}
        assert rows["accuracy ↑"] == ["0.6500 (0.5000–0.8500)", "0.5500", "★ 0.7500 (0.7000–0.8000)"]
        assert rows["f1 ↑"] == ["–", "0.5500", "★ 0.7500 (0.7000–0.8000)"], "a mean of the rest would hide a failure"

    def test_a_batch_is_no_epoch(self, tmp_path: Path) -> None:
        """`--realloc-N 1` and `1.0`, and learning rates that differ in the sixth digit, are different options."""
        for name, values in (("realloc_N", (1, 1.0)), ("learning_rate", (1e-4, 1.00001e-4))):
            folders = [
                trained_run(
                    tmp_path / f"{name}-{value}-{seed}", "train-dyrealloc", seed=seed, logger="none", **{name: value}
                )
                for value in values
                for seed in range(2)
            ]
            runs = read_runs(folders)
            assert [len(group.runs) for group in groups(runs)] == [2, 2]
            (row,) = (row for row in facts(runs) if row.label.replace("-", "") == name.replace("_", ""))
            assert [cell.text for cell in row.cells] == [str(value) for value in values for _ in range(2)]

    def test_runs_of_other_configurations_are_no_seeds(self, tmp_path: Path) -> None:
        """`config.toml` holds the configurations themselves. What they have in common with options is listed."""
        q = Settings(8, 16.0)
        kinds = {
            "r4": ElementConfig("lora", "network", Settings(4, 8.0), {}),
            "r8": ElementConfig("lora", "network", q, {}),
            "q": ElementConfig("lora", "network", Settings(0), {"q_proj": q}),
            "places": ElementConfig("lora", "layer", Settings(0), {(0, "q_proj"): q}),
        }
        folders = []
        for name, config in kinds.items():
            for seed in range(2):
                folder = trained_run(tmp_path / f"{name}-{seed}", seed=seed, logger="none")
                config = config if seed == 0 or name != "places" else replace(config, sites={(1, "w1"): q})
                write_config(folder, "train", changed(Options(), {"seed": seed, "logger": "none"}), {"lora": config})
                folders.append(folder)
        runs = read_runs(folders)
        assert [len(group.runs) for group in groups(runs)] == [2, 2, 2, 2]
        listed = {row.label: [cell.text for cell in row.cells[::2]] for row in facts(runs)}
        assert listed["--rank"] == ["4", "8", "8", "–"]
        assert listed["--target"] == ["all", "all", "q_proj", "–"]
        assert listed["--lora-config"] == ["–", "–", "–", "layer-wise, up to rank 8"]

    def test_curves_of_two_loggers_are_one(self, tmp_path: Path) -> None:
        """A resumed run may have another logger than before."""
        folder = trained_run(tmp_path / "run", logger="none")
        write_csv(folder, {"train/loss": [(step, 1.0) for step in range(3)]})
        write_tensorboard(folder, {"train/loss": [(step, 2.0) for step in range(3, 5)]})
        found = read_curves(folder / "logs", "tensorboard").series["train/loss"]
        assert found == tuple((step + 1, 1.0 if step < 3 else 2.0) for step in range(5))

    def test_configurations_that_differ_at_one_seed_are_compared(self, tmp_path: Path) -> None:
        """Different places for different seeds may follow from scores. Different places at one seed are two methods."""
        folders = []
        for name, place in (("a", (0, "q_proj")), ("b", (1, "w2"))):
            config = ElementConfig("lora", "layer", Settings(0), {place: Settings(8, 16.0)})
            for seed in range(2):
                folder = trained_run(tmp_path / f"{name}-{seed}", seed=seed, logger="none")
                write_config(folder, "train", changed(Options(), {"seed": seed, "logger": "none"}), {"lora": config})
                folders.append(folder)
        found = groups(read_runs(folders))
        assert [[run.name for run in group.runs] for group in found] == [["a-0", "a-1"], ["b-0", "b-1"]]

    def test_rows_that_the_seed_holds_out(self, tmp_path: Path) -> None:
        own = {"dataset": "mine.csv", "logger": "none"}
        for name, drawn, count in (("by-seed", (0, 1), 1), ("by-itself", (3, 4), 0)):
            folders = [
                trained_run(tmp_path / f"{name}-{seed}", seed=seed, validation_seed=validation, **own)
                for seed, validation in enumerate(drawn)
            ]
            assert len(groups(read_runs(folders))) == count

    def test_runs_of_one_seed_have_no_spread(self, tmp_path: Path) -> None:
        page = report(tmp_path, *(trained_run(tmp_path / f"run{i}", seed=7, logger="none") for i in range(2)))
        assert "Over seeds" not in page.text

    def test_equal_names_are_told_apart(self, tmp_path: Path) -> None:
        folders = [trained_run(tmp_path / place / "run", logger="none") for place in ("a", "b")]
        assert [run.name for run in read_runs(folders)] == ["a/run", "b/run"]

    def test_which_way_is_better(self) -> None:
        for name in ("loss", "validation/loss", "perplexity", "test/perplexity"):
            assert better(name) == "min"
        for name in ("accuracy", "f1", "validation/rougeL", "official/f1", "official/exact"):
            assert better(name) == "max"
        assert better("reallocation/churn") is None


class TestAgreement:
    def test_of_scores(self, tmp_path: Path) -> None:
        """Run that scored the same elements are compared, and others are not."""
        folders = [scored_run(tmp_path / name, layers=3, seed=seed) for seed, name in enumerate("ab")]
        folders.append(scored_run(tmp_path / "other", layers=2))
        page = report(tmp_path, *folders)
        (section,) = (one for one in page.all("section") if one.attributes["id"] == "across")
        ranks, choices = (rows_of(table) for table in section.all("table"))
        first, second = (scores_file.read(folder / "scores.toml") for folder in folders[:2])
        assert [cell.text for cell in ranks["a"]] == ["1.000", f"{spearman(first, second):.3f}"]
        assert [cell.text for cell in choices["b"]] == [f"{overlap(second, first, 0.25):.3f}", "1.000"]
        assert "other" not in ranks

    def test_of_choices(self, tmp_path: Path) -> None:
        page = report(tmp_path, *(dynamic_run(tmp_path / name, layers=3, logger="none") for name in "ab"))
        (section,) = (one for one in page.all("section") if one.attributes["id"] == "across")
        rows = rows_of(section.all("table")[0])
        assert (rows["b"][0].text, rows["b"][-1].text) == ("9", "100.0%")

    def test_one_run_agrees_with_nothing(self, tmp_path: Path) -> None:
        assert "Agreement" not in report(tmp_path, scored_run(tmp_path / "scored", layers=3)).text


class TestScores:
    def test_a_budget_of_time(self, tmp_path: Path) -> None:
        folder = scored_run(tmp_path, layers=3, shortcuts=False)
        found = replace(scores_file.read(folder / "scores.toml"), step_time=StepTime(3, 0.5, 0.1, 0.0))
        scores_file.write(folder / "scores.toml", found)
        options = {"model": "opt_lora", "task": "classification", "budget_time": 0.8}
        write_config(folder, "imp-test", changed(Options(), options), {})
        assert "The budget of 0.8 of the step time turns the framed" in report(tmp_path, folder).text

    def test_the_heat_map_shows_every_score_and_the_budget(self, tmp_path: Path) -> None:
        page = report(tmp_path, scored_run(tmp_path / "scored", layers=3))
        scores = {item.element.key: item.score for item in element_scores(3, shortcuts=True)}
        (figure,) = heat_maps(page)
        words = [node.text for node in figure.all("text")]
        assert words[:3] == ["q_proj", "k_proj", "v_proj"]
        assert "block" in words
        shown = cells_of(figure)
        assert shown.keys() == scores.keys()
        for key, score in scores.items():
            assert float(shown[key][0]) == pytest.approx(score, rel=0.01)
        best = sorted(scores, key=lambda key: -scores[key])
        budget = 4 + 3  # ⌊18/4⌋ LoRA and 11/4 shortcuts, rounded half up
        assert {key for key, (_, framed) in shown.items() if framed} == set(best[:budget])
        rows = rows_of(page.all("table", class_="plain")[0])
        assert list(rows)[1:] == best[:10]
        assert [cells[-1].text for cells in rows.values()] == ["", *["on"] * budget, *[""] * (10 - budget)]
        assert rows[best[0]][1].text == f"{scores[best[0]] / sum(scores.values()):.1%}"

    def test_a_configuration_beside_the_scores_is_no_result(self, tmp_path: Path) -> None:
        """`imp-test` proposes to write the chosen configuration there."""
        scored_run(tmp_path, layers=3)
        write_result(tmp_path, [Place(0, "q_proj")], frozenset({"layer_0.q_proj"}))
        tiles = [tile.all("span")[0].text for tile in report(tmp_path, tmp_path).all("div", class_="tile")]
        assert tiles == ["elements scored"]

    def test_has_no_curves_and_misses_no_metrics(self, tmp_path: Path, capsys) -> None:
        page = report(tmp_path, scored_run(tmp_path / "scored", layers=2))
        assert "An importance test trains nothing" in page.text
        assert "no metrics yet" not in page.text + capsys.readouterr().out


class TestDynamicRun:
    def test_timeline(self, tmp_path: Path) -> None:
        folder = dynamic_run(tmp_path / "dynamic", layers=3, epochs=(0, 0, 1, 1, 1, 2))
        history = write_history(folder, 3, (0, 0, 1, 1, 1, 2))
        (figure,) = (f for f in report(tmp_path, folder).all("figure") if "When each" in f.all("figcaption")[0].text)
        times = history.times_on()
        for place, tip in zip(history.places, tips(figure), strict=True):
            assert tip.startswith(f"{place.key}: on after {times[place.key]} of 6 reallocations")
        words = [node.text for node in figure.all("text")]
        assert {f"{key} {on} of 6" for key, on in times.items()} <= set(words)
        assert {"0:0", "1:0", "2:0"} <= set(words), "epoch and batch"

    def test_churn(self, tmp_path: Path) -> None:
        folder = dynamic_run(tmp_path / "dynamic", layers=3, logger="none")
        history = write_history(folder, 3, (0, 0, 0, 1))
        page = report(tmp_path, folder)
        caption = page.all("figcaption")[-1].text
        assert caption == "Share of the elements that each reallocation switched"
        shown = [f"dynamic: {number(y)} at reallocation {x}" for x, y in enumerate(history.churn()) if x]
        assert tips(page.all("figure")[-1]) == shown

    def test_a_search_that_has_not_decided_yet(self, tmp_path: Path) -> None:
        """The history is there, and empty, from the start of the run on."""
        folder = dynamic_run(tmp_path / "dynamic", layers=3)
        for name in (HISTORY, FREQUENCY):
            (folder / name).write_text("")
        assert "dynamic" in report(tmp_path, folder).text

    def test_how_often_and_what_is_left(self, tmp_path: Path) -> None:
        folder = dynamic_run(tmp_path / "dynamic", layers=3)
        history = write_history(folder, 3, (0, 0, 0, 1, 1, 1, 2, 2, 2))
        page = report(tmp_path, folder)
        ranks, often = (cells_of(figure) for figure in heat_maps(page))
        for shown in (ranks, often):
            assert {key for key, (_, framed) in shown.items() if framed} == history.last_on()
        assert {key: int(text) for key, (text, _) in often.items()} == history.times_on()
        assert {key for key, (text, _) in ranks.items() if text == "off"} == ranks.keys() - history.last_on()
        assert {text for text, framed in ranks.values() if framed} <= {"4", "8"}
        tiles = {tile.all("span")[0].text: tile.text for tile in page.all("div", class_="tile")}
        assert "of 29" in tiles["elements on"]
        assert tiles["reallocations"].startswith("9")

    def test_what_the_program_writes(self, world: World, tmp_path: Path) -> None:
        arguments = world.training("--max-steps", 6, "--realloc-N", 3, "--imp-limit-test-batches", 1)[1:]
        where = ("--project-dir", tmp_path, "--project", "real", "--log-every-n-steps", 1, "--logger", "csv")
        assert program(["train-dyrealloc", *arguments, *map(str, where), "--accelerator", "cpu"]) == 0
        page = report(tmp_path, tmp_path / "real")
        saved = json.loads((tmp_path / "real" / "metrics.json").read_text())["metrics"]["validation"]
        rows = rows_of(page.all("table", class_="compare")[0])
        assert rows["accuracy"][0].text == f"{saved['accuracy']:.4f}"
        assert rows["action"][0].text == "train-dyrealloc"
        assert rows["reallocations"][0].text == "2"
        assert len(heat_maps(page)) == 2
        names = {caption.text for caption in page.all("figcaption")}
        assert {"train/loss", "validation/loss", "validation/accuracy"} <= names
        assert not any(name.startswith("final/") for name in names)


class TestCurves:
    def test_all_loggers_give_the_same(self, tmp_path: Path) -> None:
        series = curves(80, 1.0, 3)
        write_csv(tmp_path / "csv", series)
        write_tensorboard(tmp_path / "tensorboard", series)
        for logger in ("csv", "tensorboard"):
            found = read_curves(tmp_path / logger / "logs", logger).series
            assert found.keys() == series.keys()
            for name, points in series.items():
                assert [step for step, _ in found[name]] == [step for step, _ in as_counted(points)]
                assert [v for _, v in found[name]] == pytest.approx([v for _, v in points], rel=1e-6)

    def test_the_last_value_of_a_step_counts_and_no_nan(self, tmp_path: Path) -> None:
        write_csv(tmp_path, {"train/loss": [(3, 1.0), (1, 2.0), (3, 0.5), (4, float("nan"))], "epoch": [(1, 0)]})
        assert read_curves(tmp_path / "logs", "csv").series == {"train/loss": ((2, 2.0), (4, 0.5))}

    @pytest.mark.parametrize(
        ("logger", "said"),
        [
            ("none", "it kept no curves"),
            ("wandb", "with Weights & Biases"),
            ("mlflow", "with MLflow"),
            ("tensorboard", "Nothing is logged yet"),
        ],
    )
    def test_none_is_said(self, tmp_path: Path, logger: str, said: str) -> None:
        folder = trained_run(tmp_path / "run", logger="none")
        text = (folder / "config.toml").read_text().replace('logger = "none"', f'logger = "{logger}"')
        (folder / "config.toml").write_text(text)
        assert said in report(tmp_path, folder).text


class TestAction:
    def test_the_configuration_names_it(self, tmp_path: Path) -> None:
        folder = trained_run(tmp_path / "run", "train-dyrealloc", logger="none")
        (run,) = read_runs([folder])
        assert run.action == "train-dyrealloc"
        assert "action" not in run.options

    @pytest.mark.parametrize(
        ("files", "action"),
        [
            (("scores.toml",), "imp-test"),
            (("reallocation_history.toml", "checkpoints"), "train-dyrealloc"),
            (("checkpoints",), "train"),
            ((), "test"),
        ],
    )
    def test_the_files_of_an_older_run_tell_it(self, tmp_path: Path, files: tuple[str, ...], action: str) -> None:
        dynamic_run(tmp_path / "run", layers=2, logger="none")
        scored_run(tmp_path / "run", layers=2)
        config = tmp_path / "run" / "config.toml"
        lines = [line for line in config.read_text().splitlines() if not line.startswith(("#", "action"))]
        config.write_text("\n".join(lines))
        for file in {"scores.toml", "reallocation_history.toml"} - set(files):
            (tmp_path / "run" / file).unlink()
        if "checkpoints" not in files:
            (tmp_path / "run" / "checkpoints").rmdir()
        assert read_runs([tmp_path / "run"])[0].action == action

    @pytest.mark.parametrize("action", ["train", "train-dyrealloc"])
    def test_of_runs_that_an_older_version_wrote(self, action: str) -> None:
        assert read_runs([ROOT / "tests" / "fixtures" / "runs" / action])[0].action == action


class TestMistakes:
    def refused(self, *runs: Path) -> str:
        page = runs[0].parent / "report.html"
        line = refusal(main, [*map(str, runs), "--output", str(page)])
        assert not page.exists()
        return line

    def test_no_run(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        assert "empty is no run: it has no config.toml; give folders that train" in self.refused(tmp_path / "empty")
        assert "nowhere is not there" in self.refused(tmp_path / "nowhere")

    def test_no_metrics_yet(self, tmp_path: Path, capsys) -> None:
        folder = trained_run(tmp_path / "running")
        (folder / "metrics.json").unlink()
        page = report(tmp_path, folder)
        assert "running has no metrics yet" in page.text
        assert "note: running has no metrics yet" in capsys.readouterr().out
        assert len(page.all("figure")) == 4, "its curves are there"

    def test_twice(self, tmp_path: Path) -> None:
        folder = trained_run(tmp_path / "run", logger="none")
        assert "is given twice" in self.refused(folder, tmp_path / "run" / ".." / "run")

    def test_the_page_can_t_be_written(self, tmp_path: Path) -> None:
        folder = trained_run(tmp_path / "run", logger="none")
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="cannot write"):
            main([str(folder), "--output", str(tmp_path / "file" / "report.html")])

    @pytest.mark.parametrize("link", [None, "symlink_to", "hardlink_to"])
    def test_the_page_is_a_file_of_a_run(self, tmp_path: Path, link: str | None) -> None:
        folder = trained_run(tmp_path / "run", logger="none")
        output = metrics = folder / "metrics.json"
        before = metrics.read_bytes()
        if link is not None:
            output = tmp_path / "page.html"
            getattr(output, link)(metrics)
        with pytest.raises(UserError, match="is a file that this tool reads"):
            main([str(folder), "--output", str(output)])
        assert metrics.read_bytes() == output.read_bytes() == before

    def test_a_page_that_is_there_is_replaced_whole(self, tmp_path: Path) -> None:
        (tmp_path / "report.html").write_text("<title>HeteroLoRA: what stood here")
        report(tmp_path, trained_run(tmp_path / "run", logger="none"))
        assert {path.name for path in tmp_path.iterdir()} == {"run", "report.html"}
        assert "what stood here" not in (tmp_path / "report.html").read_text()


@pytest.mark.skipif(chromium.PROGRAM is None, reason="Chromium is not installed")
@pytest.mark.slow
def test_in_a_browser(tmp_path: Path) -> None:
    several = [dynamic_run(tmp_path / "a-dynamic-run-with-a-long-name", epochs=[e // 4 for e in range(16)])]
    several += [trained_run(tmp_path / f"run{i}", seed=i, logger="csv") for i in range(1, 4)]
    pages = {"one": several[:1], "several": several, "scores": [scored_run(tmp_path / "scored", layers=12)]}
    texts = {
        "one": ("0.8200", "train/loss", "When each element of", "--learning-rate"),
        "several": ("Side by side", "★", "run3"),
        "scores": ("Scores", "shortcut2", "layer_0"),
    }
    with chromium.Page() as page:
        for name, runs in pages.items():
            file = tmp_path / f"{name}.html"
            main([*map(str, runs), "--output", str(file)])
            papers = set()
            for width, dark in ((1280, False), (1280, True), (390, True), (390, False)):
                page.open(file, width, dark)
                assert page.errors == []
                assert [r for r in page.requests if not r.startswith("data:")] == [file.resolve().as_uri()]
                assert page.evaluate("document.documentElement.scrollWidth") == width
                right_edges = "[...document.querySelectorAll('section > *')].map(e => e.getBoundingClientRect().right)"
                assert max(page.evaluate(right_edges)) <= width
                shown = page.evaluate("document.body.innerText")
                assert all(text in shown for text in texts[name])
                drawn = "[...document.querySelectorAll('figure .picture')].map(e => e.getBoundingClientRect().width)"
                assert min(page.evaluate(drawn)) > 200
                papers.add((dark, page.evaluate("getComputedStyle(document.body).backgroundColor")))
            assert len(papers) == 2, "light and dark have a paper of their own"


@pytest.mark.skipif(chromium.PROGRAM is None, reason="Chromium is not installed")
def test_figures_follow_a_change_of_theme(tmp_path: Path) -> None:
    main([str(trained_run(tmp_path / "run", logger="csv")), "--output", str(tmp_path / "report.html")])
    text = "getComputedStyle(document.querySelector('.picture text')).fill"
    with chromium.Page() as page:
        page.open(tmp_path / "report.html", 1280, dark=False)
        light = page.evaluate(text)
        page.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        assert page.evaluate(f"new Promise(done => setTimeout(() => done({text}), 300))") != light
