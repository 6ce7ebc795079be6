"""The kinds of input: for each, its files, how they are damaged, and the shortest commands that read them."""

from __future__ import annotations

import csv
import json
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from options.actions import ACTIONS
from options.declare import OptionInfo
from options.every import declared
from tests.fuzz.case import Case, Change
from tests.fuzz.others import OTHERS
from tests.fuzz.strategies import FLOATS, INTEGERS, TEXTS, choice, damage, replaced, wrong_document, wrong_record
from tests.fuzz.world import SKELETON, TEST, measuring

Command = tuple[str, ...]  # an entry, and its arguments


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        weight: its share of the cases.
        subjects: what is copied from the world.
        files: the files that are damaged, as patterns below the world.
        commands: they read the copies.
    """

    weight: int
    subjects: tuple[str, ...]
    files: tuple[str, ...]
    commands: tuple[Command, ...]


def _test(*more: str) -> Command:
    return ("main", *measuring(*more))


_INSPECT = ("inspect_model", "--json", "--load")
_BUDGET = ("--turn-on-percentile", "0.5", "--output", "{case}/lora.toml", "--shortcut-output", "{case}/shortcut.toml")
_LOAD_MODEL = _test("--load", "{case}/model")
_RESUME = (
    "main",
    "train",
    "--resume-training",
    "--load",
    "{case}/trained/checkpoints/last.ckpt",
    "--accelerator",
    "cpu",
)
_EXPORT = ("export", "--output", "{case}/exported", "--format")

KINDS: Mapping[str, Kind] = {
    "options file": Kind(11, (), ("trained/config.toml", "dynamic/config.toml", "scored/config.toml"), tuple(
        ("main", action, "--config", "{file}", "--load", "{case}/none", "--project-dir", "{case}/runs")
        for action in ACTIONS)),
    "LoRA configuration": Kind(10, (), ("lora.toml", "dynamic/lora.toml"), (
        (*_INSPECT, "{world}/model", "--lora-config", "{file}"),)),
    "shortcut configuration": Kind(8, (), ("shortcut.toml", "dynamic/shortcut.toml"), (
        (*_INSPECT, "{world}/model", "--model", "opt_lora_ags", "--shortcut-config", "{file}"),)),
    "scores": Kind(9, ("scored",), ("scored/scores.toml",), (
        ("realloc_lora_rank", "{file}", *_BUDGET),
        ("realloc_lora_rank", "{file}", *_BUDGET, "--policy", "proportional", "--mode", "separated"),
        ("compare_scores", "{file}", "{world}/scored/scores.toml"))),
    "study folder": Kind(5, ("studied",), (
        "studied/jobs/*", "studied/runs/*/*.csv", "studied/runs/*/*.json", "studied/runs/*/*.toml", "studied/scores/*",
        "studied/*.csv"), (("study", "{world}/studied.toml", "--report-only", "--output", "{case}/studied"),)),
    "history": Kind(6, ("dynamic",), ("dynamic/reallocation_history.toml",), (
        ("plot_realloc", "{case}/dynamic", "{world}/dynamic", "--output", "{case}"),)),
    "study": Kind(6, ("studied",), ("studied.toml", "study.toml"), (
        ("study", "{file}", "--report-only", "--output", "{case}/studied"),)),
    "run folder": Kind(9, ("trained", "dynamic", "scored"), (
        "trained/*.json", "trained/*.toml", "dynamic/*.json", "dynamic/*.toml", "*/logs/*.csv", "scored/*.toml"), (
        ("report", "{run}", "--output", "{case}/report.html"),)),
    "adapter": Kind(8, ("trained",), tuple(f"trained/adapter/*.{form}" for form in ("json", "safetensors", "toml")), (
        *[(*_INSPECT, "{case}/trained/adapter")] * 3,
        ("export", "{case}/trained/adapter", *_EXPORT[1:], "merged", "--dataset", "sst2", "--drop-shortcuts"),
        _test("--load", "{case}/trained/adapter", "--model", "opt_lora_ags"))),
    "model configuration": Kind(6, ("model",), ("model/config.json", "model/generation_config.json"), (
        *[(*_INSPECT, "{case}/model")] * 3, _LOAD_MODEL)),
    "model weights": Kind(3, ("model",), ("model/model.safetensors",), (_LOAD_MODEL,)),
    "state dict": Kind(3, ("model",), ("state.pt", "model/model.safetensors"), (
        _test("--load", "{file}", "--load-type", "pt", "--backbone-model", "{world}/model"),)),
    "tokenizer": Kind(4, ("model",), ("model/tokenizer*.json",), (_LOAD_MODEL,)),
    "checkpoint": Kind(7, ("trained",), ("trained/checkpoints/last.ckpt",), (
        *[(*_INSPECT, "{file}")] * 2, _RESUME, _test("--load", "{file}", "--model", "opt_lora_ags"))),
    "rows": Kind(6, (), ("data/*.jsonl", "csv/*.csv", "json/*.json", "parquet/*.parquet"), (
        _test("--dataset-saved-path", "{run}"),)),
    "own data": Kind(4, (), ("csv/*.csv", "json/*.json", "parquet/*.parquet", "talks/*.jsonl"), (
        _test("--dataset", "{file}"), _test("--dataset", "{run}"))),
    "multiple choice": Kind(3, (), ("quiz/*.jsonl",), (
        _test("--dataset", "{file}", "--prompt-column", "question", "--choices-column", "endings", "--label-column",
              "answer", "--few-shot", "1"),
        _test("--dataset", "arc_easy", "--dataset-saved-path", "{run}", "--few-shot", "1"))),
    "saved data set": Kind(3, ("saved",), ("saved/*.json", "saved/*/*"), (
        _test("--dataset-saved-path", "{run}"),)),
    "data cache": Kind(2, ("cache",), ("cache/heterolora/*/*",), (_test(),)),
}  # fmt: skip
COMMAND_LINE, COMMAND_LINE_WEIGHT = "command line", 14


def weights() -> dict[str, int]:
    """The share of each kind."""
    others = {name: weight for name, (weight, _) in OTHERS.items()}
    return {COMMAND_LINE: COMMAND_LINE_WEIGHT, **{name: kind.weight for name, kind in KINDS.items()}, **others}


def cases(name: str, world: Path) -> st.SearchStrategy[Case]:
    """The cases of a kind, damaged from the sound files of the world."""
    if name in OTHERS:
        return OTHERS[name][1](world)
    return command_lines() if name == COMMAND_LINE else _damaged(name, KINDS[name], world)


# ---- files


def _files(kind: Kind, world: Path) -> list[Path]:
    """Relative to the world."""
    found = [path for pattern in kind.files for path in sorted(world.glob(pattern)) if path.is_file()]
    return [path.relative_to(world) for path in found]


def _case(name: str, kind: Kind, command: Command, file: Path, changes: tuple[Change, ...] = ()) -> Case:
    subjects = kind.subjects if file.parts[0] in kind.subjects else (*kind.subjects, file.parts[0])
    here = {"{file}": f"{{case}}/{file}", "{run}": f"{{case}}/{file.parts[0]}"}
    entry, *arguments = (here.get(part, part) for part in command)
    return Case(name, entry, tuple(arguments), subjects, changes)


def sound(world: Path) -> Iterator[Case]:
    """Each command of each kind, on files that are not damaged."""
    for name, kind in KINDS.items():
        for file in {path.parts[0]: path for path in _files(kind, world)}.values():
            yield from (_case(name, kind, command, file) for command in kind.commands)


def _damaged(name: str, kind: Kind, world: Path) -> st.SearchStrategy[Case]:
    files = _files(kind, world)
    others = [*map(str, files), "model/config.json", "lora.toml", "data/train.jsonl", "trained/checkpoints/best.ckpt"]

    @st.composite
    def case(draw: st.DrawFn) -> Case:
        file, command = draw(st.sampled_from(files)), draw(st.sampled_from(kind.commands))
        return _case(name, kind, command, file, draw(changes(world, str(file), others)))

    return case()


def changes(world: Path, file: str, others: list[str]) -> st.SearchStrategy[tuple[Change, ...]]:
    """What may happen to a file: mostly something wrong inside, if it is a document, else damage to its bytes."""
    ways = [damage(file), damage(file), replaced(file, others)]
    suffix = Path(file).suffix
    if suffix in _READERS:
        ways += [wrong_document(file, _READERS[suffix](world / file), suffix[1:])] * 4
    elif suffix == ".ckpt":
        ways += [wrong_record(file, json.loads((world / SKELETON).read_text()))] * 3
    return choice(*ways)


def _csv(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


_READERS: Mapping[str, Callable[[Path], Any]] = {
    ".toml": lambda path: tomllib.loads(path.read_text()),
    ".json": lambda path: json.loads(path.read_text()),
    ".jsonl": lambda path: [json.loads(line) for line in path.read_text().splitlines()],
    ".csv": _csv,
}


# ---- command lines

# With these values a run would start other processes, or use the network.
_ALONE = {"num_devices", "num_nodes", "strategy", "logger", "accelerator"}
_IN_ORDER = ("--max-steps", "1", "--limit-val-batches", "1", "--num-devices", "1", "--num-nodes", "1")


def command_lines() -> st.SearchStrategy[Case]:
    """Options with odd values. Most name a model that is not there, so that nothing is trained."""
    return choice(_early(), _early(), _early(), _whole())


def _early() -> st.SearchStrategy[Case]:
    words = st.one_of(TEXTS, st.sampled_from([*ACTIONS, "--help", "-", "--", "--lr", "opt_lora", "sst2", "toy_nli"]))
    options = st.lists(_options(), max_size=4).map(lambda lists: [word for words in lists for word in words])
    action = st.sampled_from([*ACTIONS] * 3 + ["trian", "", "--config"])
    return st.builds(
        lambda action, options, more: _command_line((action, *options, *more, "--load", "{case}/none")),
        action, options, st.lists(words, max_size=1),
    )  # fmt: skip


def _whole() -> st.SearchStrategy[Case]:
    """Train one step or measures one batch, if nothing stops it before."""
    action = st.sampled_from([TEST, ("train", *TEST[1:]), ("train-dyrealloc", *TEST[1:]), ("imp-test", *TEST[1:])])
    return st.builds(
        lambda action, options: _command_line((*action, *options, *_IN_ORDER, *TEST[-4:], "--num-workers", "0")),
        action, _options(_ALONE | {"num_workers", "max_steps", "project_dir", "project"}),
    )  # fmt: skip


def _command_line(words: tuple[str, ...]) -> Case:
    # The operating system passes no argument with a NUL character.
    return Case(COMMAND_LINE, "main", tuple(word.replace("\x00", "\\0") for word in words))


def _options(without: set[str] = frozenset()) -> st.SearchStrategy[list[str]]:
    infos = [info for name, info in declared().items() if name not in without]
    return st.sampled_from(infos).flatmap(_option)


def _option(info: OptionInfo) -> st.SearchStrategy[list[str]]:
    flags = st.sampled_from([info.flag, *info.aliases])
    values = choice(*_values_of(info))
    if info.name in ("project", "project_dir"):  # whoever runs the tests may be allowed to write anywhere
        values = values.map(lambda text: text if text.startswith("/dev/") else text.lstrip("/"))
    return st.builds(
        lambda flag, value, joined: [f"{flag}={value}"] if joined else [flag, value], flags, values, st.booleans()
    )


def _values_of(info: OptionInfo) -> Iterator[st.SearchStrategy[str]]:
    """Values of the option's type first."""
    if info.choices:
        yield st.sampled_from(info.choices)
    if info.type in (int, int | float):
        yield INTEGERS.map(str)
    if info.type in (float, int | float):
        yield FLOATS.map(repr)
        yield st.floats(0, 1).map(repr)
    yield TEXTS
