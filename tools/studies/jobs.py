"""The commands of a study: scores first, then runs that tune the learning rate, then runs that measure."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actions.command.parse import parse_command
from actions.command.request import Request
from actions.request.elements import request_of
from actions.request.origin import TOY_BASE
from actions.run.run_folder import METRICS, SCORES
from dataset import registry
from heterolora.choosing import scores as scores_file
from heterolora.choosing.allocation import Scored, tie_generator
from heterolora.choosing.ranks import Assignment, Budget, Greedy, Policy, Proportional, TopK, assign
from heterolora.common.checks import present
from heterolora.common.errors import UserError
from heterolora.common.files import to_toml, write_text
from heterolora.elements.config import ElementConfig
from heterolora.elements.element import at_ranks
from options.actions import DYREALLOC, IMP_TEST, TRAIN
from options.declare import flag_of
from options.every import declared, defaults
from tools.studies.spec import DRAWN, SHRINK, UNIFORM, Arm, Study

SCALING = 2.0  # alpha / r of every element, before tuning
Key = tuple[str, int | None, str]  # task, parameters, arm
_OF_THE_ELEMENTS = {"model", "load"}  # the options that the list of elements depends on
_PATHS = {"load", "backbone_model", "dataset", "dataset_saved_path", "cache_folder"}  # the options that may be a path
PROGRAM = TOY_BASE.parents[1]  # the folder of the program
EVEN = Proportional(0, 1 << 16)  # ranks as equal as the budget allows: `uniform` has no highest rank of its own


@dataclass(frozen=True)
class Job:
    """One command and the file that it ends with.

    Attributes:
        name: unique in a study.
        command: what follows `python`, and `options`: of a new run. A run that was killed continues without them.
        folder: of the run.
        result: the name of the last file that the command writes.
        share: of the run, after which it stops.
        digest: of what is run, so that a study that has changed does not take it for the same job.
    """

    name: str
    command: tuple[str, ...]
    options: tuple[str, ...]
    folder: Path
    result: str = METRICS
    share: float = 1.0
    digest: str = ""

    @property
    def results(self) -> Path:
        """The folder of its results. Those of a part of a run are kept apart, because the run goes on."""
        return self.folder if self.share == 1 else self.folder / "parts" / f"{self.share:g}"

    def arguments(self, last: Path | None) -> tuple[str, ...]:
        """What follows `python`: of a new run, or to continue the run of the checkpoint `last`."""
        start = self.options if last is None else ("--resume-training", "--load", str(last))
        return (*self.command, *start, *(() if self.share == 1 else ("--stop-after", str(self.share))))


@dataclass(frozen=True)
class Case:
    """One training run: what is trained, how, and with which seed. `share` is the part of it that is run.

    `parameters` is None if the arm has a size of its own.
    """

    task: str
    parameters: int | None
    arm: Arm
    learning_rate: float
    seed: int
    share: float = 1.0

    @property
    def run(self) -> str:
        return f"{prefix(self.key)}.lr{self.learning_rate:g}.seed{self.seed}"

    @property
    def name(self) -> str:
        return self.run if self.share == 1 else f"{self.run}.to{self.share:g}"

    @property
    def key(self) -> Key:
        return self.task, self.parameters, self.arm.name


def prefix(key: Key) -> str:
    """The start of the names of an arm's runs."""
    return ".".join(str(part) for part in key if part is not None)


def tuning_cases(study: Study) -> Iterator[Case]:
    for task, parameters, arm, rate, seed in itertools.product(
        study.tasks, study.parameters, study.arms.values(), study.learning_rates, study.tuning_seeds
    ):
        yield Case(task, parameters, arm, rate, seed)


def measuring_cases(study: Study, rates: Mapping[Key, float]) -> Iterator[Case]:
    """The runs of every arm that has a learning rate."""
    for (task, parameters, arm), rate in rates.items():
        for seed in study.seeds:
            yield Case(task, parameters, study.arms[arm], rate, seed)


class Commands:
    """The commands of a study, whose files are in `folder`."""

    def __init__(self, study: Study, folder: Path) -> None:
        self.study, self.folder = study, folder

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def check(self) -> None:
        """Raise UserError if a training run would be refused because of its options or its data."""
        for task, arm in itertools.product(self.study.tasks, self.study.arms.values()):
            case = Case(task, self.study.parameters[0], arm, self.study.learning_rates[0], self.study.seeds[0])
            try:
                self.request(case)
            except UserError as mistake:
                raise UserError(f"task {task}, arm {arm.name}: {mistake.found}", mistake.expected) from mistake

    def request(self, case: Case) -> Request:
        """What a training run is asked, but for its LoRA configuration. Raises UserError if it would be refused."""
        plain = {} if case.arm.peft_method is None else self._plain(case)
        action = DYREALLOC if case.arm.searches else TRAIN
        return request_of(parse_command([action, *self._options(action, case.run, case, _training(case) | plain)]))

    # ---- scores

    def scoring(self, case: Case) -> Job:
        """The scores that the ranks of this run follow from, or for `constant` only the list of its elements."""
        arm, name = case.arm, self._scores_name(case)
        rank = arm.scored_rank
        settings = {"r": rank, "lora_alpha": SCALING * rank**0.5 if arm.use_rslora else SCALING * rank}
        configuration = self.folder / "configs" / f"scored.r{rank}{'.rslora' if arm.use_rslora else ''}.toml"
        text = to_toml(
            {"granularity": "network", "default": settings | ({"use_rslora": True} if arm.use_rslora else {})}
        )
        write_text(configuration, text)
        chosen = {"importance_test_name": arm.heuristic, "lora_config": str(configuration), "seed": self._seed(case)}
        chosen |= {"imp_halves": False, "imp_step_time": False}  # results over seeds decide, and no budget is a time
        own = arm.options
        if arm.heuristic == "constant":  # arms share this list
            own = {key: value for key, value in own.items() if key in _OF_THE_ELEMENTS}
        options = self._options(IMP_TEST, name, case, chosen, own)
        command = ("-m", "main", IMP_TEST)
        return Job(name, command, options, self.runs / name, SCORES, digest=self._digest(command, options, text))

    def _seed(self, case: Case) -> int:
        return 0 if case.arm.heuristic == "constant" else case.seed

    def _scores_name(self, case: Case) -> str:
        arm = case.arm
        parts = [case.task, "scores", arm.heuristic, f"r{arm.scored_rank}", *(["rslora"] if arm.use_rslora else [])]
        differs = arm.options if arm.heuristic != "constant" else arm.options.keys() & _OF_THE_ELEMENTS
        own = [arm.name] if differs else []
        return ".".join([*parts, *own, f"seed{self._seed(case)}"])

    def elements(self, case: Case) -> tuple[Scored, ...]:
        """The scored places that the arm may use. Raises UserError if the model has none of them."""
        arm, found = case.arm, scores_file.read(self.runs / self._scores_name(case) / SCORES).scored
        names = dict.fromkeys(item.element.name for item in found)
        blocks = dict.fromkeys(item.element.layer for item in found)
        if arm.places and not names.keys() & set(arm.places):
            raise UserError(
                f"arm {arm.name}: no place has a name in {', '.join(arm.places)}", f"valid: {', '.join(names)}"
            )
        if wrong := [block for block in arm.blocks if block not in blocks]:
            raise UserError(f"arm {arm.name}: there is no block {wrong[0]}", f"valid: {min(blocks)} to {max(blocks)}")
        return tuple(
            item
            for item in found
            if item.element.name in (arm.places or names) and item.element.layer in (arm.blocks or blocks)
        )

    def budget(self, case: Case) -> int:
        """The LoRA parameters that a run may have."""
        if case.parameters is not None:
            return case.parameters
        elements = [item.element for item in self.elements(case)]
        every = at_ranks(elements, {element.key: case.arm.rank for element in elements})
        return int(case.arm.share * sum(element.parameters for element in every))

    # ---- runs

    def training(self, case: Case) -> Job:
        """The training run, and its LoRA configuration, which is written."""
        if case.arm.peft_method is not None:
            return self._peft(case)
        elements = self.elements(case)
        searches = case.arm.searches
        ranks: Mapping[str, int]
        if searches:
            ranks = {item.element.key: item.element.rank for item in elements}
        else:
            ranks = assignment(case, elements, self.budget(case)).ranks
        chosen = at_ranks([item.element for item in elements], ranks)
        configuration = self.folder / "configs" / f"{case.run}.toml"
        text = ElementConfig.of(chosen, "lora").to_toml()
        write_text(configuration, text)
        more: dict[str, Any] = {"lora_config": str(configuration)}
        if searches:
            more["budget_parameters"] = self.budget(case)
        if case.arm.method == SHRINK:
            more["budget_schedule"] = "shrink"
        action = DYREALLOC if searches else TRAIN
        command, options = ("-m", "main", action), self._options(action, case.run, case, _training(case) | more)
        digest = self._digest(command, options, text)
        return Job(case.name, command, options, self.runs / case.run, share=case.share, digest=digest)

    def _peft(self, case: Case) -> Job:
        """A run of PEFT's own layers, on the plain model."""
        options = self._options(TRAIN, case.run, case, _training(case) | self._plain(case))
        scores = str(self.runs / self._scores_name(case) / SCORES)
        command = ("-m", "tools.studies.peft_run", present(case.arm.peft_method), str(self.budget(case)), scores)
        digest = self._digest(command, options)
        return Job(case.name, command, options, self.runs / case.run, share=case.share, digest=digest)

    def _plain(self, case: Case) -> dict[str, str]:
        """The options of the plain model that PEFT adapts."""
        base = {**self.study.tasks[case.task], **case.arm.options}.get("load")
        base = from_here("load", base) if base else str(TOY_BASE)
        return {"model": base, "load": base}

    def _digest(self, command: Sequence[str], options: Sequence[str], configuration: str = "") -> str:
        """Of what a job runs. The folder of the study may move, and options may be in another order."""
        pairs = sorted(zip(options[::2], options[1::2], strict=True))
        parts = json.dumps([command, pairs, configuration]).replace(json.dumps(str(self.folder))[1:-1], "")
        return hashlib.sha256(parts.encode()).hexdigest()[:16]

    def _options(
        self, action: str, name: str, case: Case, chosen: Mapping[str, Any], own: Mapping[str, Any] | None = None
    ) -> tuple[str, ...]:
        """The options of a new run in the folder `name`, for the command line. `own` are the arm's, by default all."""
        options = {**self.study.tasks[case.task], **(case.arm.options if own is None else own)}
        options = {key: from_here(key, value) for key, value in options.items()} | dict(chosen)
        if not registry.is_known(options.get("dataset", defaults()["dataset"])):
            options.setdefault("validation_seed", 0)  # all seeds measure the same rows
        options |= {"project_dir": str(self.runs), "project": name}
        used = {name: value for name, value in options.items() if declared()[name].used_by(action)}
        return tuple(text for name, value in used.items() for text in (flag_of(name), _text(value)))


def _training(case: Case) -> dict[str, Any]:
    """The options that the study sets in every training run. The last weights are measured: selecting the best would
    use the rows that measure.
    """
    return {"learning_rate": case.learning_rate, "seed": case.seed, "measured": "last", "row_results": True}


def from_here(name: str, value: Any) -> Any:
    """An option as the jobs understand it, which run in the folder of the program: a path must not depend on that."""
    if name not in _PATHS or (name == "dataset" and registry.is_known(value)):
        return value
    path = os.path.expanduser(value)
    return os.path.abspath(path) if os.path.exists(path) and Path.cwd() != PROGRAM else path


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def assignment(case: Case, elements: Sequence[Scored], budget: int) -> Assignment:
    """The ranks of a run with fixed places: the whole budget of parameters, until not one more rank fits.

    The seed decides which of equal places get the ranks that are not enough for all. With `uniform` and a budget below
    one rank for each place, these are random places. One set of places for all seeds would compare with its luck.

    Raises UserError if the budget is below the cheapest rank or above the arm's whole space.
    """
    arm = case.arm
    policy: Policy
    if arm.method == UNIFORM:
        policy = EVEN
    elif arm.policy == "proportional":
        policy = Proportional(0, arm.rank)
    elif arm.policy == "greedy":
        policy = Greedy()
    else:
        policy = TopK(arm.rank, to_the_last=True)
    draw = 1 if arm.method == DRAWN else 0
    return assign(elements, policy, Budget("parameters", budget), "off", tie_generator(case.seed, draw))
