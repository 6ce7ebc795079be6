"""The scores document: the score of every element, with everything needed to make a configuration from it.

::

    task = "classification"
    dataset = "rte"
    model = "opt_lora"
    load = "facebook/opt-350m"
    importance_test_name = "grad_norm"
    batches = 32
    batch_size = 8
    seed = 0

    [layer_0.q_proj]
    score = 0.0123
    kind = "lora"
    module = "model.decoder.layers.0.self_attn.q_proj"
    in = 1024
    out = 1024
    r = 8
    alpha = 16.0
    dropout = 0.0

The table `[step_time]` has the constants of `heterolora.choosing.step_time.StepTime`; older files have none. An element
outside of the blocks has a table such as `[outside.lm_head]`.
`use_rslora` of an element and `renormalize` at the top are written only if they are true. An element has `experts` if
its module is a parameter with the weights of so many experts. It has `by_rank`, the
list of the scores of its ranks, if the heuristic gives them. `halves` of an element is the list of its scores from each
half of the batches, and `stability` at the top is their rank correlation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from heterolora.choosing import display
from heterolora.choosing.allocation import Scored, of_kind
from heterolora.choosing.step_time import StepTime
from heterolora.common.checks import (
    ABOVE_0,
    PROBABILITY,
    TEXT,
    TRUTH,
    Condition,
    check_keys,
    check_known,
    number,
    whole_number,
)
from heterolora.common.errors import UserError, shown
from heterolora.common.files import to_toml, write_text
from heterolora.common.outside import read_toml
from heterolora.elements.element import NAMES, OUTSIDE, SHORTCUTS, Element, Kind, Settings


@dataclass(frozen=True)
class Scores:
    """The result of scoring.

    Attributes:
        scored: every candidate with its score, by block and then in the order of the search space.
        importance_test_name: the heuristic.
        model: `--model`, e.g. `opt_lora`.
        load: hub name or folder of the base; empty if there is none.
        batches: number of scoring batches, over all processes.
        batch_size: rows of a scoring batch.
        renormalize: whether the blocks normalise once more after the cross-layer shortcuts.
        step_time: what a training step takes, as it was measured. Scores that differ only in it are equal.
        modules: the paths of all modules of the network, which files do not hold; None: not known.
        stability: Spearman's rank correlation of the scores from two halves of the batches, if it is known.
    """

    scored: tuple[Scored, ...]
    importance_test_name: str
    task: str = ""
    dataset: str = ""
    model: str = ""
    load: str = ""
    batches: int = 0
    batch_size: int = 1
    seed: int = 0
    renormalize: bool = False
    step_time: StepTime | None = field(default=None, compare=False)
    stability: float | None = None
    modules: tuple[str, ...] | None = field(default=None, compare=False)

    @property
    def has_shortcuts(self) -> bool:
        return bool(of_kind(self.scored, "shortcut"))

    def by_module(self) -> dict[str, float]:
        """Path of a linear layer -> the score of its LoRA element, the highest score first."""
        lora = sorted(of_kind(self.scored, "lora"), key=lambda item: -item.score)
        return {item.element.module: item.score for item in lora}

    def table(self, most: int | None = None) -> str:
        """Return a table of all elements, or of the `most` with the highest scores, to print."""
        return display.as_table(self.scored, most)

    def plot(self, axes: Any | None = None) -> Any:
        """Draw the scores as blocks × names with matplotlib, on `axes` if given, and return the axes."""
        return display.draw(self.scored, self.importance_test_name, axes)

    def __repr__(self) -> str:
        return display.in_one_line(self.scored, self.importance_test_name)

    def _repr_html_(self) -> str:
        return display.as_html(self.scored, self.importance_test_name)


_SCORE = number(lambda value: value >= 0, "a finite number, 0 or more")
_BY_RANK = Condition(
    lambda given: isinstance(given, list) and all(map(_SCORE.valid, given)) and given == sorted(given, reverse=True),
    "a list of finite numbers, 0 or more, each at most as large as the one before",
)
_HALVES = Condition(
    lambda given: isinstance(given, list) and len(given) == 2 and all(map(_SCORE.valid, given)),
    "a list of two finite numbers, 0 or more",
)
_TOP: Mapping[str, Condition] = {
    **dict.fromkeys(("task", "dataset", "model", "load", "importance_test_name"), TEXT),
    "batches": whole_number(0),
    "batch_size": whole_number(1),
    "seed": whole_number(0),
    "renormalize": TRUTH,
    "stability": number(lambda value: -1 <= value <= 1, "a number from -1 to 1"),
}
_SECONDS = number(lambda value: 0 <= value <= 10**6, "seconds, from 0 to 1,000,000")
_STEP_TIME: Mapping[str, Condition] = {
    "blocks": whole_number(1, 10**6),
    **dict.fromkeys(("forward", "block", "width"), _SECONDS),
}
_ELEMENT: Mapping[str, Condition] = {
    "score": _SCORE,
    "kind": Condition(lambda value: value in ("lora", "shortcut"), '"lora" or "shortcut"'),
    "module": TEXT,
    "in": whole_number(1),
    "out": whole_number(1),
    "r": whole_number(1),
    "alpha": ABOVE_0,
    "dropout": PROBABILITY,
    "use_rslora": TRUTH,
    "experts": whole_number(2),
    "by_rank": _BY_RANK,
    "halves": _HALVES,
}
_OPTIONAL = ("renormalize", "stability", "use_rslora", "experts", "by_rank", "halves")
_TABLES = "a table [layer_<i>.<name>]"
_TABLE = r"layer_(0|[1-9][0-9]{0,8})|outside"
_EXPECTED = "expected a scores file, as imp-test writes it"


def read(path: str | Path) -> Scores:
    """Read a scores file. Raises UserError if it cannot be read, a key is unknown or missing, or a value is wrong."""
    document = read_toml(path, "the scores file", _EXPECTED)
    tables = {key: value for key, value in document.items() if re.fullmatch(_TABLE, key)}
    top = {key: value for key, value in document.items() if key not in (*tables, "step_time")}
    scored = [
        _read_element(path, table, name, values)
        for table, names in tables.items()
        for name, values in _table(f"{path}: [{table}]", names).items()
    ]
    check_keys(str(path), _TOP, top, _EXPECTED, f", or {_TABLES} for each element", _OPTIONAL)
    if not scored:
        raise UserError(f"{path}: no element is scored", f"expected {_TABLES} for each element")
    scored.sort(key=lambda item: item.element.layer)  # stable: the file's order within a block
    return Scores(scored=tuple(scored), step_time=_read_step_time(path, document, scored), **top)


def write(path: str | Path, scores: Scores) -> None:
    """Write a scores file; `read` returns equal scores. Raises UserError if a score is not finite, or writing fails."""
    top = {key: getattr(scores, key) for key in _TOP}
    document: dict[str, Any] = {key: value for key, value in top.items() if value is not None and value is not False}
    if scores.step_time is not None:
        document["step_time"] = asdict(scores.step_time)
    for item in scores.scored:
        element, settings = item.element, item.element.settings
        if not _SCORE.valid(item.score):
            raise UserError(f"the score of {element.key} is {item.score}", f"expected {_SCORE.expected}")
        values: dict[str, Any] = {"score": item.score, "kind": element.kind, "module": element.module}
        values |= {"in": element.in_features, "out": element.out_features}
        values |= {"r": settings.rank, "alpha": settings.alpha, "dropout": settings.dropout}
        values |= {"use_rslora": True} if settings.use_rslora else {}
        values |= {"experts": element.experts} if element.experts > 1 else {}
        values |= {key: list(found) for key in ("by_rank", "halves") if (found := getattr(item, key))}
        document.setdefault(element.table, {})[element.name] = values
    write_text(path, to_toml(document))


def _read_step_time(path: str | Path, document: Mapping[str, Any], scored: Sequence[Scored]) -> StepTime | None:
    if "step_time" not in document:
        return None
    where = f"{path}: [step_time]"
    found = StepTime(**check_keys(where, _STEP_TIME, document["step_time"], _EXPECTED))
    last = max((item.element.layer for item in scored if not item.element.is_outside), default=-1)
    if last >= found.blocks:
        raise UserError(f"{where}: blocks is {found.blocks}", f"expected more than {last}")
    return found


def _read_element(path: str | Path, table: str, name: str, values: Any) -> Scored:
    where = f"{path}: [{table}.{name}]"
    found = check_keys(where, _ELEMENT, _table(where, values), _EXPECTED, optional=_OPTIONAL)
    if table == "outside":
        check_known(where, name, OUTSIDE)
    elif f".{name}." not in f".{found['module']}.":  # without a family table, the name is a part of the path
        check_known(where, name, NAMES)
    layer = OUTSIDE[name] if table == "outside" else int(table.removeprefix("layer_"))
    kind: Kind = "shortcut" if name in SHORTCUTS else "lora"
    if found["kind"] != kind:
        raise UserError(f"{where}: kind is '{found['kind']}'", f"expected '{kind}' for {name}")
    if name == "shortcut2" and layer == 0:
        raise UserError(f"{where} has no previous block", "shortcut2 starts in the previous block; block 0 has none")
    settings = Settings(found["r"], float(found["alpha"]), float(found["dropout"]), found.get("use_rslora", False))
    widths = found["in"], found["out"]
    element = Element(layer, name, kind, found["module"], *widths, settings, found.get("experts", 1))
    lists = (tuple(map(float, found.get(key, ()))) for key in ("by_rank", "halves"))
    return Scored(element, float(found["score"]), *lists)


def _table(where: str, values: Any) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise UserError(f"{where} is {shown(values)}", f"expected {_TABLES}")
    return values
