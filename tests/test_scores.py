"""The scores file: what is written comes back, and what is wrong is said in one line."""

import dataclasses
import math
import random
import re
import struct
import tomllib
from pathlib import Path

import pytest

from heterolora.choosing import scores
from heterolora.choosing.scores import Scores
from heterolora.choosing.step_time import StepTime
from heterolora.common.errors import UserError
from heterolora.elements.element import Settings
from tests.mistakes import refusal
from tests.scoring import scored

MODULE = "model.decoder.layers.{}.self_attn.{}"
SCORED = (
    scored(0, "q_proj", 0.1, widths=(16, 32), module=MODULE.format(0, "q_proj"), settings=Settings(8, 16.0, 0.05)),
    scored(0, "v_proj", 1e-45, module=MODULE.format(0, "v_proj"), settings=Settings(4, 16.0, 0.0, True)),
    scored(1, "q_proj", 0.0, module=MODULE.format(1, "q_proj"), settings=Settings(8, 16.0, 0.0)),
    scored(1, "shortcut2", 3e300, module="model.decoder.layers.1", settings=Settings(8, 8.0, 0.0)),
    scored(10, "residual1", 2.0, module="model.decoder.layers.10", settings=Settings(8, 8.0, 0.0)),
)
SCORES = Scores(
    task="classification",
    dataset="rte",
    model="opt_lora_ags",
    load=r'C:\x\"models"\é',
    importance_test_name="grad_norm",
    batches=32,
    batch_size=8,
    seed=0,
    scored=SCORED,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "scores.toml"


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"renormalize": True},
        {"batches": 0},
        {"stability": 1.0},
        {"stability": -1.0},
        {"step_time": StepTime(11, 0.0, 1e6, 0.5)},
        {"scored": (dataclasses.replace(SCORED[0], by_rank=(0.75, 0.1, 0.0)), *SCORED[1:])},
        {"scored": (dataclasses.replace(SCORED[0], halves=(0.75, 0.0)), *SCORED[1:])},
        {"scored": (scored(0, "k_proj", 0.1, 1, (1, 1), "a.k_proj"), *SCORED[1:]), "batch_size": 1},
    ],
    ids=lambda change: next(iter(change), ""),
)
def test_what_is_written_comes_back(path: Path, change: dict[str, object]) -> None:
    written = dataclasses.replace(SCORES, **change)
    scores.write(path, written)
    found = scores.read(path)
    assert (found, found.step_time, found.has_shortcuts) == (written, written.step_time, True)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    for key in ("by_rank", "halves", "stability", "renormalize"):
        assert path.read_text().count(key) == (key in change or any(getattr(item, key, ()) for item in written.scored))


def test_floats_come_back_bit_for_bit(path: Path) -> None:
    generator = random.Random(0)
    values = [struct.unpack("<d", generator.randbytes(8))[0] for _ in range(2000)]
    kept = [abs(value) for value in values if math.isfinite(value)]
    many = tuple(scored(layer, "q_proj", score) for layer, score in enumerate(kept))
    scores.write(path, dataclasses.replace(SCORES, scored=many))
    assert [item.score for item in scores.read(path).scored] == kept


def test_the_file_has_the_keys_that_others_read(path: Path) -> None:
    scores.write(path, SCORES)
    document = tomllib.loads(path.read_text())
    tables = {f"layer_{layer}" for layer in (0, 1, 10)}
    top = {"task", "dataset", "model", "load", "importance_test_name", "batches", "batch_size", "seed"}
    assert set(document) == tables | top
    assert document["layer_0"]["q_proj"] == {
        "score": 0.1,
        "kind": "lora",
        "module": "model.decoder.layers.0.self_attn.q_proj",
        "in": 16,
        "out": 32,
        "r": 8,
        "alpha": 16.0,
        "dropout": 0.05,
    }


def test_integers_count_as_numbers(path: Path) -> None:
    scores.write(path, SCORES)
    path.write_text(path.read_text().replace("score = 0.1\n", "score = 1\n").replace("alpha = 8.0", "alpha = 8"))
    read = scores.read(path)
    assert [type(item.score) for item in read.scored] == [float] * len(SCORED)
    assert read.scored[0].score == 1.0


@pytest.mark.parametrize("score", [math.nan, math.inf, -0.5])
def test_a_score_that_cannot_be_read_leaves_the_old_file(path: Path, score: float) -> None:
    scores.write(path, SCORES)
    broken = (*SCORED[1:], dataclasses.replace(SCORED[0], score=score))
    with pytest.raises(UserError, match=r"layer_0\.q_proj is .*; expected a finite number, 0 or more"):
        scores.write(path, dataclasses.replace(SCORES, scored=broken))
    assert scores.read(path) == SCORES


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("score = 0.1", "score = nan", r"\[layer_0\.q_proj\]: score is nan; expected a finite number, 0 or more"),
        ("score = 0.1", "score = inf", r"score is inf; expected a finite number"),
        ("score = 0.1", "score = -0.5", r"score is -0\.5; expected a finite number, 0 or more"),
        ("score = 0.1", 'score = "0.1"', r"score is '0\.1'"),
        ("score = 0.1", "score = true", r"score is True"),
        ("score = 0.1\n", "", r"\[layer_0\.q_proj\]: score missing"),
        ("score = 0.1", "skore = 0.1", r"'skore' is not known; did you mean 'score'"),
        ("[layer_0.q_proj]", "[layer_0.q_prj]", r"'q_prj' is not known; did you mean 'q_proj'"),
        ("[layer_0.q_proj]", "[layr_0.q_proj]", r"'layr_0' is not known; .* or a table \[layer_<i>"),
        ("[layer_0.q_proj]", "[layer_00.q_proj]", r"'layer_00' is not known"),
        ("[layer_0.q_proj]", "[layer_1.v_proj]\n[layer_0.q_proj]", r"\[layer_1\.v_proj\]: score, kind, module"),
        ("[layer_0.q_proj]", "[layer_0]\nk_proj = 3\n[layer_0.q_proj]", r"\[layer_0\.k_proj\] is 3; expected a table"),
        ("[layer_1.shortcut2]", "[layer_0.shortcut2]", r"\[layer_0\.shortcut2\] has no previous block"),
        ('kind = "shortcut"', 'kind = "lora"', r"\[layer_1\.shortcut2\]: kind is 'lora'; expected 'shortcut'"),
        ('kind = "shortcut"', 'kind = "short"', r'kind is .short.; expected "lora" or "shortcut"'),
        ("out = 32", "out = 0", r"out is 0; expected a whole number, 1 or more"),
        ("r = 4", "r = 0", r"\[layer_0\.v_proj\]: r is 0"),
        ("alpha = 8.0", "alpha = 0.0", r"alpha is 0\.0; expected a number above 0"),
        ("dropout = 0.05", "dropout = 1.0", r"dropout is 1\.0; expected a number in \[0, 1\)"),
        ("batches = 32", "batches = 3.5", r"batches is 3\.5; expected a whole number"),
        ("batches = 32\n", "", r"scores\.toml: batches missing"),
        ('dataset = "rte"', "dataset = 3", r"dataset is 3; expected a text"),
        ("seed = 0", "seed = 0\nsead = 1", r"'sead' is not known; did you mean 'seed'"),
        *(("score = 0.1", f"score = 0.1\nby_rank = {wrong}", r"by_rank is .*; expected a list of finite numbers, 0 or")
          for wrong in ("0.5", "[0.5, 0.6]", "[0.5, -0.1]", '["a"]')),
        *(("score = 0.1", f"score = 0.1\nhalves = {wrong}", "halves is .*; expected a list of two finite numbers")
          for wrong in ("0.5", "[0.5]", "[0.5, -0.1]", "{ a = 1.0, b = 2.0 }")),
        ("seed = 0", "seed = 0\nstability = 1.1", r"stability is 1\.1; expected a number from -1 to 1"),
        ("[layer_0.q_proj]", "[step_time]\nblocks = 11\nforward = 1000001\nblock = 0\nwidth = 0\n[layer_0.q_proj]",
         "forward is 1000001; expected seconds, from 0 to 1,000,000"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_told_in_one_line(path: Path, old: str, new: str, message: str) -> None:
    scores.write(path, SCORES)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    line = refusal(scores.read, path)
    assert re.search(message, line)
    assert str(path) in line


def test_a_file_that_scores_nothing(path: Path) -> None:
    scores.write(path, dataclasses.replace(SCORES, scored=()))
    with pytest.raises(UserError, match="no element is scored"):
        scores.read(path)
