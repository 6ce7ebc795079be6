"""The study file: what is compared, on what, and how the comparison is judged. `tools/study.py` shows one."""

from __future__ import annotations

import importlib.util
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from dataset import registry
from heterolora import saliency
from heterolora.common.checks import ABOVE_0, TEXT, TRUTH, Condition, check_known, number, whole_number
from heterolora.common.errors import UserError
from heterolora.common.outside import read_toml
from heterolora.elements.element import PROJECTIONS
from model.family import parse_model_name
from options.actions import ALL_OPTIONS
from options.data import OwnDataOptions
from options.every import declared, defaults

_PAGE = "docs/studies.md"
EXPECTED = "see `python tools/study.py --help` for an example"
UNIFORM, DRAWN, DYNAMIC, SHRINK, PEFT = "uniform", "drawn", "dynamic", "shrink", "peft:"
PEFT_METHODS = ("lora", "rslora", "pissa", "eva", "adalora")
_SET_BY_THE_STUDY = (
    "seed", "learning_rate", "lora_config", "project", "project_dir", "row_results", "config", "resume_training",
    "log_level", "budget_parameters", "budget_schedule", "budget_time", "turn_on_percentile", "stop_after",
    "rank", "alpha", "target", "measured",
)  # fmt: skip

# Options that decide which rows are evaluated.
_OF_THE_ROWS = (
    "dataset", "task", "dataset_saved_path", "validation_share", "validation_seed", "limit_val_batches",
    "limit_test_batches", *(found.name for found in fields(OwnDataOptions)),
)  # fmt: skip
_OF_LORA = ("quantize", "lora_init", "loraplus_ratio")  # options without effect on PEFT's layers

Measure = Literal["loss", "accuracy"]
Question = Literal["better", "smallest"]
RANK = 8  # of an arm that names none


@dataclass(frozen=True)
class Arm:
    """One method that is compared.

    Attributes:
        method: `uniform`, `drawn` (random places), the name of a heuristic (its best places), `dynamic`
            (`train-dyrealloc`), `shrink` (`train-dyrealloc` with a budget that shrinks), or `peft:` and a method of the
            PEFT package.
        places: canonical names of the projections that may have an element; empty: all.
        blocks: numbers of the blocks that may have an element, from 0; empty: all.
        rank: highest rank of an element, and the rank at which it is scored; for `uniform` there is no bound. If the
            question is which size is enough, the arm's parameters are those of this rank in all its places.
        share: of these parameters that the arm has.
        use_rslora: scale by 1/√r instead of a constant, so that one learning rate fits all ranks.
        policy: how ranks follow from scores, as in tools/realloc_lora_rank.py.
        options: more options of its runs.
    """

    name: str
    method: str
    places: tuple[str, ...] = ()
    blocks: tuple[int, ...] = ()
    rank: int = RANK
    share: float = 1.0
    use_rslora: bool = False
    policy: Literal["topk", "proportional", "greedy"] = "topk"
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def peft_method(self) -> str | None:
        return self.method.removeprefix(PEFT) if self.method.startswith(PEFT) else None

    @property
    def searches(self) -> bool:
        """Whether its places follow from a search during training."""
        return self.method in (DYNAMIC, SHRINK)

    @property
    def scored_rank(self) -> int:
        """The rank of its elements in the scores file."""
        return self.rank if self.method != UNIFORM and self.peft_method is None else RANK

    @property
    def heuristic(self) -> str:
        """The heuristic of the scores that its ranks follow from."""
        return self.method if self.method in saliency.names() else "constant"


@dataclass(frozen=True)
class Study:
    """A study file.

    Attributes:
        parameters: of every arm; (None,) if each arm has its own.
        tasks: name -> options of its runs, with the options of all runs.
        baseline: the arm that the others are compared with.
        question: `better`: which arms beat the baseline at equal parameters; `smallest`: which arms with fewer
            parameters than the baseline are not worse than it by more than `resolve`.
        tuning_seeds: the seeds of the runs that choose each arm's learning rate.
        tuning: how the learning rates are compared: `grid` trains each one completely, and `halving` stops the worse
            half of them early, again and again.
        extend_rates: how many further rates an arm may try while the best one is the lowest or the highest. Each is as
            far from the best one as its neighbour.
        tuning_split, measuring_split: evaluated splits; empty: the first validation split. If they are the same,
            `tuning_share` of its rows tune, and the others measure.
        resolve: the difference between two arms that matters.
        confidence: of all intervals.
    """

    parameters: tuple[int | None, ...]
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    tuning_seeds: tuple[int, ...]
    tasks: Mapping[str, Mapping[str, Any]]
    arms: Mapping[str, Arm]
    baseline: str
    measure: Measure
    question: Question = "better"
    tuning: Literal["grid", "halving"] = "grid"
    extend_rates: int = 0
    tuning_split: str = ""
    measuring_split: str = ""
    tuning_share: float = 0.25
    resolve: float = 0.01
    confidence: float = 0.95


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,60}")
_LARGEST_SEED = 2**32 - 1  # of --seed
_ROWS_SHARE = number(lambda value: 0.001 <= value <= 0.999, "a number from 0.001 to 0.999")
_SHARE = number(lambda value: 0 < value < 1, "a number between 0 and 1")
_LISTS: Mapping[str, Condition] = {
    "parameters": whole_number(1),
    "seeds": whole_number(0, _LARGEST_SEED),
    "tuning_seeds": whole_number(0, _LARGEST_SEED),
    "learning_rates": ABOVE_0,
}
_VALUES: Mapping[str, Condition] = {
    "baseline": TEXT,
    "question": Condition(lambda value: value in ("better", "smallest"), '"better" or "smallest"'),
    "measure": Condition(lambda value: value in ("loss", "accuracy"), '"loss" or "accuracy"'),
    "tuning": Condition(lambda value: value in ("grid", "halving"), '"grid" or "halving"'),
    "extend_rates": whole_number(0),
    "tuning_split": TEXT,
    "measuring_split": TEXT,
    "tuning_share": _ROWS_SHARE,
    "resolve": ABOVE_0,
    "confidence": _SHARE,
}
_TABLES = ("options", "tasks", "arms")
_ARM: Mapping[str, Condition] = {
    "method": TEXT,
    "places": Condition(lambda value: isinstance(value, list) and len(value) > 0, "a list of names such as q_proj"),
    "blocks": Condition(
        lambda value: isinstance(value, list) and len(value) > 0, "a list of numbers of blocks, from 0"
    ),
    "rank": whole_number(1),
    "share": number(lambda value: 0 < value <= 1, "a number above 0, up to 1"),
    "use_rslora": TRUTH,
    "policy": Condition(
        lambda value: value in ("topk", "proportional", "greedy"), '"topk", "proportional" or "greedy"'
    ),
    "options": Condition(lambda value: isinstance(value, dict), "a table of options"),
}
_IDLE: Mapping[str, tuple[tuple[str, ...], str]] = {
    UNIFORM: (("rank", "policy"), "which spends the budget as evenly as it can"),
    DRAWN: (("policy",), "whose places are random"),
    DYNAMIC: (("policy",), "which turns elements on at `rank`"),
    SHRINK: (("policy",), "which turns elements on at `rank`"),
    PEFT: (("places", "blocks", "rank", "use_rslora", "policy"), "which PEFT places"),
}  # method -> the keys without effect, and why


def read_study(path: Path) -> Study:
    """Read a study file. Raises UserError if a key or a name is unknown or missing, or a value is wrong."""
    document = read_toml(path, "the study", EXPECTED)
    smallest = document.get("question") == "smallest"
    for key in document:
        check_known(str(path), key, (*_LISTS, *_VALUES, *_TABLES), listed_by=_PAGE)
    lists = {key: _list(path, key, document[key], form) for key, form in _LISTS.items() if key in document}
    values = {key: form.check(str(path), key, document[key]) for key, form in _VALUES.items() if key in document}
    if smallest and "parameters" in lists:
        raise UserError(f'{path} has parameters, and question = "smallest"', "give each arm its own rank and share")
    lists |= {"parameters": (None,)} if smallest else {}
    for key in ("parameters", "seeds", "learning_rates"):
        if key not in lists:
            raise UserError(f"{path}: {key} is missing", EXPECTED)
    if values.get("extend_rates") and values.get("tuning") == "halving":
        raise UserError(f"{path}: extend_rates has no effect with successive halving", 'give tuning = "grid"')
    if values.get("extend_rates") and len(lists["learning_rates"]) < 2:
        raise UserError(f"{path}: extend_rates needs two learning rates, whose ratio it repeats", "give another rate")
    shared = _options(f"{path}: [options]", document.get("options", {}))
    tasks = {
        name: shared | _options(f"{path}: [tasks.{name}]", table)
        for name, table in _named_tables(path, "tasks", document).items()
    }
    arms = {name: _arm(path, name, table, smallest) for name, table in _named_tables(path, "arms", document).items()}
    baseline = values.pop("baseline", next(iter(arms)))
    check_known(f"{path}: baseline", baseline, arms)
    if len(arms) < 2:
        raise UserError(f"{path} has one arm", "a comparison needs two: add a table [arms.NAME]")
    for (task, options), arm in itertools.product(tasks.items(), arms.values()):
        _check_arm_on_task(path, task, arm, {**options, **arm.options}, values)
    return Study(
        parameters=lists["parameters"],
        seeds=lists["seeds"],
        learning_rates=lists["learning_rates"],
        tuning_seeds=lists.get("tuning_seeds", lists["seeds"][:1]),
        tasks=tasks,
        arms=arms,
        baseline=baseline,
        measure=values.pop("measure", "loss"),
        **values,
    )


def _check_arm_on_task(path: Path, task: str, arm: Arm, options: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Raise UserError if the runs of an arm would fail, or would be measured on other rows than those of other arms.

    `values`: the keys of the study itself.
    """
    for name in _OF_THE_ROWS:
        if name in arm.options:
            found = f"{path}: [arms.{arm.name}] has the option {name}, and all arms are measured on the same rows"
            raise UserError(found, f"give it in [options] or in [tasks.{task}]")
    for name in _OF_LORA if arm.peft_method is not None else ():
        if options.get(name, defaults()[name]) != defaults()[name]:
            raise UserError(
                f"{path}: the runs of arm {arm.name} have the option {name}, which does not fit PEFT's layers",
                "give it in the options of the other arms",
            )
    dataset = options.get("dataset", defaults()["dataset"])
    if not registry.is_known(dataset):
        return
    spec = registry.get(dataset)
    splits = [*(spec.validation or ("validation",)), *((spec.test,) if spec.test else ())]
    for key in ("tuning_split", "measuring_split"):
        if key in values:
            check_known(f"{path}: {key} of task {task}", values[key], splits)
    if values.get("measure") == "accuracy" and not spec.labels and spec.choices is None:
        raise UserError(f"{path}: task {task} has no labels, and measure is accuracy", 'give measure = "loss"')


def _list(path: Path, key: str, value: Any, form: Condition) -> tuple[Any, ...]:
    items = value if isinstance(value, list) else [value]
    if not items:
        raise UserError(f"{path}: {key} is empty", f"expected a list of {form.expected}")
    checked = tuple(form.check(str(path), key, item) for item in items)
    if len(set(checked)) < len(checked):
        raise UserError(f"{path}: {key} holds a value twice", "expected each value once")
    return tuple(map(float, checked)) if key == "learning_rates" else checked


def _named_tables(path: Path, key: str, document: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    tables = document.get(key)
    if not isinstance(tables, dict) or not tables or not all(isinstance(table, dict) for table in tables.values()):
        raise UserError(f"{path} has no tables [{key}.NAME]", EXPECTED)
    for name in tables:
        if not _NAME.fullmatch(name):
            raise UserError(f"{path}: [{key}.{name}] is no name of a folder", "expected letters, digits, _ . and -")
    return tables


def _options(where: str, table: Any) -> dict[str, Any]:
    """Options as in a --config file. Raises UserError if one is unknown or its value is wrong."""
    if not isinstance(table, dict):
        raise UserError(f"{where} is {table!r}", "expected a table of options")
    for name, value in table.items():
        check_known(where, name, declared(), listed_by=ALL_OPTIONS)
        if name in _SET_BY_THE_STUDY:
            raise UserError(f"{where}: the study sets {name} itself", "leave it out")
        declared()[name].from_toml(f"{where} {name}", value)
    adapted = parse_model_name(table.get("model", defaults()["model"]))
    if adapted is None or adapted.shortcuts or "shortcut_config" in table:
        found = "a model without LoRA" if adapted is None else "shortcuts, which its budgets do not count"
        raise UserError(f"{where}: the study has {found}", 'give model = "lora"')
    return table


def _arm(path: Path, name: str, table: Mapping[str, Any], smallest: bool) -> Arm:
    where = f"{path}: [arms.{name}]"
    for key, value in table.items():
        check_known(where, key, _ARM)
        _ARM[key].check(where, key, value)
    if "method" not in table:
        raise UserError(f"{where} has no method", EXPECTED)
    peft = tuple(f"{PEFT}{method}" for method in PEFT_METHODS)
    check_known(where, table["method"], (UNIFORM, DRAWN, DYNAMIC, SHRINK, *saliency.names(), *peft), listed_by=_PAGE)
    if table["method"] in peft and importlib.util.find_spec("peft") is None:
        raise UserError(f"{where}: method {table['method']} needs the package peft", "pip install peft")
    method = table["method"]
    idle, why = _IDLE.get(PEFT if method in peft else method, ((), ""))
    if not smallest and "share" in table:
        raise UserError(f'{where}: share has no effect without question = "smallest"', "leave it out, or give question")
    for key in idle:
        if key in table and not (smallest and key == "rank"):
            raise UserError(f"{where}: {key} has no effect on {method}, {why}", "leave it out")
    for place in table.get("places", ()):
        check_known(f"{where}: places", place, PROJECTIONS)
    for block in table.get("blocks", ()):
        whole_number(0).check(where, "blocks", block)
    lists = {key: tuple(table.get(key, ())) for key in ("places", "blocks")}
    return Arm(name, **{**table, **lists, "options": _options(f"{where} options", table.get("options", {}))})
