"""A study without a study file: measures a first run, plans the study into the given time, and writes its file."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from actions.command.parse import parse_command
from actions.command.request import Request
from actions.result.metrics_file import read_resources
from actions.run.console import say
from actions.run.run_folder import write_json
from actions.training.limits import measures_validation, with_epochs
from dataset.batching.module import TextDataModule
from heterolora.common.checks import present
from heterolora.common.errors import UserError
from heterolora.common.files import write_toml
from heterolora.common.outside import read_json
from model.load import length_limit, load_config, load_tokenizer
from model.task.optimization import batches_within, steps_of_run
from options.actions import TRAIN
from options.every import defaults, plain
from tools.studies.execution import Execution, Track
from tools.studies.jobs import Commands, from_here, tuning_cases
from tools.studies.planning import EXTEND, RATES, FirstRun, Length, StudyPlan, plan
from tools.studies.spec import Measure, Question, Study, read_study

STUDY, PLAN, FIRST = "study.toml", "plan.json", "first_run"
_ROWS = 400  # that are measured, unless the options say how many: a quarter of them tune
_STEPS = 12  # of the first run
_OF_THE_LENGTH = ("max_steps", "max_epochs", "limit_train_batches")
_OF_THE_TASK = ("dataset", "dataset_saved_path")


@dataclass(frozen=True)
class Asked:
    """What the command line asks.

    Attributes:
        options: of every run, that were given.
        hours: that the study may take.
    """

    question: Question
    measure: Measure
    resolve: float
    hours: float
    options: Mapping[str, Any]

    @property
    def task(self) -> str:
        """A name for the data."""
        found = Path(self.options.get("dataset", defaults()["dataset"])).stem
        return re.sub(r"[^A-Za-z0-9_-]", "_", found).strip("_-") or "data"

    @property
    def folder(self) -> Path:
        """The default folder of the study."""
        model = Path(self.options.get("load", self.options.get("model", defaults()["model"]))).name
        return Path("studies") / f"{self.question}_{model}_{self.task}"

    def document(self, options: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        """A study file with these options of every run."""
        task = {name: options[name] for name in _OF_THE_TASK if name in options}
        shared = {name: value for name, value in options.items() if name not in task}
        judged = {"question": self.question, "measure": self.measure, "resolve": self.resolve}
        return {**judged, **more, "options": shared, "tasks": {self.task: task}}

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "options": dict(self.options)}


def options_of(words: Sequence[str]) -> dict[str, Any]:
    """The options of every run that the command line gives. Raises UserError as `python -m main train` does."""
    command = parse_command([TRAIN, *words])
    if "config" in command.typed:
        raise UserError("--config cannot be given with --question", "give the options themselves")
    return {name: from_here(name, value) for name, value in plain(command.typed).items()}


def planned(asked: Asked, folder: Path, workers: int, track: Track) -> Study:
    """The study that answers, planned at the first start. Raises UserError if the folder has another plan."""
    if (folder / STUDY).is_file():
        if read_json(folder / PLAN, "the plan", "give another --output") != asked.as_dict():
            found = f"{folder} has the study of another command"
            raise UserError(found, f"give another --output, or continue that study: {folder / STUDY}")
        return read_study(folder / STUDY)
    first = Path(os.path.realpath(folder)) / FIRST
    shutil.rmtree(first, ignore_errors=True)  # the times of an interrupted run say nothing
    first.mkdir()
    few = {name: {"method": "uniform", "rank": rank} for name, rank in (("rank8", 8), ("rank1", 1))}
    write_toml(first / STUDY, asked.document(asked.options, seeds=[0], learning_rates=[RATES[0]], arms=few))
    commands = Commands(read_study(first / STUDY), first)
    request = commands.request(next(tuning_cases(commands.study)))
    length, limits = _length_and_limits(request, asked.options)
    batches = _STEPS * request.options.loop.accumulate_grad_batches
    options = {**asked.options, **limits, "limit_train_batches": batches, "max_epochs": 1}
    write_toml(first / STUDY, asked.document(options, seeds=[0], learning_rates=[RATES[0]], arms=few))
    measured = _measured(read_study(first / STUDY), first, min(_STEPS, length.epoch, length.run), track)
    planned = plan(measured, length, 3600 * asked.hours * workers)
    _write(asked, folder, planned, {**asked.options, **limits, **({} if length.fixed else _run(planned))})
    say(_described(measured, planned, workers))
    return read_study(folder / STUDY)


def _run(found: StudyPlan) -> dict[str, int]:
    return {"max_steps": found.steps, "max_epochs": found.epochs}


def _length_and_limits(request: Request, given: Mapping[str, Any]) -> tuple[Length, dict[str, int]]:
    """How long a run is, and options that limit the rows that are measured."""
    options = request.options
    config = load_config(request.base.name, request.spec, options.attention)
    tokenizer = load_tokenizer(request.base.name, config)
    data = TextDataModule(request.spec, options.data, options.seed)
    data.attach(tokenizer, length_limit(config, tokenizer))
    loop = with_epochs(request.action, options, data)[0].loop
    batches = batches_within(data.train_batches_per_epoch(options.devices.world), loop.limit_train_batches)
    epoch = max(1, -(-batches // loop.accumulate_grad_batches))
    steps = steps_of_run(batches, loop.accumulate_grad_batches, loop.max_epochs, options.optimization.max_steps)
    length = Length(epoch, int(steps), fixed=any(name in given for name in _OF_THE_LENGTH))
    rows = -(-_ROWS // options.data.batch_size)
    limits = {"limit_val_batches": rows, "limit_test_batches": 1 if measures_validation(data) else rows}
    return length, {name: value for name, value in limits.items() if name not in given}


def _measured(study: Study, folder: Path, steps: int, track: Track) -> FirstRun:
    """Run a few steps of the largest arm. Raises UserError if they fail."""
    execution = Execution(replace(study, arms=dict(list(study.arms.items())[:1])), folder)
    execution.comparisons(run_jobs=True, track=track)
    if execution.failures or not execution.measured:
        reasons = [*(record.error for record in execution.failures), *execution.reasons.values(), "it has no result"]
        raise UserError(f"the first run failed: {reasons[0]}", f"its output is in {execution.jobs_folder}")
    (run,) = execution.measured.values()
    training, step_seconds = present(read_resources(run.folder)["train_seconds"]), present(run.step_seconds)
    blocks = {item.element.layer for item in execution.commands.elements(run.case)}
    validation = max(0.0, training - steps * step_seconds)
    return FirstRun(step_seconds, max(0.0, run.seconds - training), validation, len(blocks))


def _write(asked: Asked, folder: Path, found: StudyPlan, options: Mapping[str, Any]) -> None:
    """The study file is the last one, because it says that the plan is complete."""
    lists = {"seeds": list(found.seeds), "learning_rates": list(found.rates), "extend_rates": EXTEND}
    tables = {name: dict(table) for name, table in found.arms.items()}
    write_json(folder / PLAN, asked.as_dict())
    head = f"# Planned for {asked.hours:g} hours by python tools/study.py --question {asked.question}\n\n"
    write_toml(folder / STUDY, asked.document(options, **lists, arms=tables), head)


def _described(measured: FirstRun, found: StudyPlan, workers: int) -> str:
    rest, minutes = measured.rest + measured.validation, round(found.seconds / workers / 60)
    rates = f"{len(found.rates)} learning rates, up to {EXTEND} more where the best one is at an end"
    tuned = f"each at {rates}, and at the best one with {len(found.seeds)} seeds"
    return (
        f"measured: a step of rank 8 takes {measured.step:.3g} s, and a run {rest:.3g} s besides its steps\n"
        f"plan: {len(found.arms)} arms ({', '.join(found.arms)}), {tuned}: {found.runs} runs of {found.steps} steps, "
        f"about {minutes} minutes"
    )
