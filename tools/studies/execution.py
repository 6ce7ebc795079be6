"""Carries a study out: what is finished is read, the rest is run, in three waves."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from heterolora.errors import UserError
from tools.studies.jobs import Case, Commands, Job, measuring_cases, tuning_cases
from tools.studies.results import Measured, best_rates, mean, read_measured
from tools.studies.running import Record, Start, record_of, run_here, run_submitted, start_process
from tools.studies.spec import Study
from tools.studies.summary import Comparison, compare

Track = Callable[[Iterator[Record], int, str], Iterator[Record]]


class Execution:
    """The state of a study in `folder`.

    Attributes:
        measured: name of a run -> its result, for all finished runs.
        failures: the jobs that failed in this start of the study.
        reasons: name of a run -> why it has no result.
    """

    def __init__(
        self,
        study: Study,
        folder: Path,
        workers: int = 1,
        executor: str = "here",
        parameters: Mapping[str, Any] = MappingProxyType({}),
        start: Start = start_process,
    ) -> None:
        self.study, self.folder, self.workers = study, folder, workers
        self.executor, self.parameters, self.start = executor, dict(parameters), start
        self.commands = Commands(study, folder)
        self.measured: dict[str, Measured] = {}
        self.failures: list[Record] = []
        self.reasons: dict[str, str] = {}
        self.rates: dict[tuple[str, int, str], float] = {}

    @property
    def jobs_folder(self) -> Path:
        return self.folder / "jobs"

    def comparisons(self, run_jobs: bool, track: Track) -> list[Comparison]:
        """Run the study, if `run_jobs`, and compare the arms of each task and budget."""
        tuning = list(tuning_cases(self.study))
        measuring = (replace(case, seed=seed) for case, seed in itertools.product(tuning, self.study.seeds))
        scoring = {job.name: job for case in (*tuning, *measuring) for job in [self.commands.scoring(case)]}
        scored = self._run(scoring, run_jobs, track, "scores")
        self._train(tuning, scored, run_jobs, track, "tuning")
        self.rates = best_rates(self.study, self.measured.values())
        cases = list(measuring_cases(self.study, self.rates))
        self._train(cases, scored, run_jobs, track, "measuring")
        pairs = itertools.product(self.study.tasks, self.study.parameters)
        return [self._comparison(task, budget, cases) for task, budget in pairs]

    def _train(
        self, cases: Iterable[Case], scored: Mapping[str, Record], run_jobs: bool, track: Track, what: str
    ) -> None:
        jobs, scores = {}, {}
        for case in cases:
            scores[case.name] = scored.get(self.commands.scoring(case).name)
            if scores[case.name] is None:
                self.reasons.setdefault(case.name, "its scores are missing")
                continue
            try:
                jobs[case.name] = (case, self.commands.training(case))
            except UserError as mistake:
                self.reasons[case.name] = str(mistake)
        records = self._run({name: job for name, (_, job) in jobs.items()}, run_jobs, track, what)
        for name, (case, job) in jobs.items():
            if name in records:
                elements = [item.element for item in self.commands.elements(case)]
                seconds = records[name].seconds + (0.0 if case.arm.heuristic == "constant" else scores[name].seconds)
                run = read_measured(case, job.result.parent, self.study.measure, elements, seconds)
                self.measured[name] = run

    def _run(self, jobs: Mapping[str, Job], run_jobs: bool, track: Track, what: str) -> dict[str, Record]:
        """The records of all jobs that ended well; runs those that have none."""
        records = {name: record for name, job in jobs.items() if (record := record_of(job, self.jobs_folder))}
        missing = [job for name, job in jobs.items() if name not in records]
        if not run_jobs:
            self.reasons |= {job.name: "it is not finished" for job in missing}
            return records
        if missing:
            if self.executor == "here":
                ended = run_here(missing, self.jobs_folder, self.workers, self.start)
            else:
                ended = run_submitted(missing, self.jobs_folder, self.workers, self.executor, self.parameters)
            for record in track(ended, len(missing), what):
                if record.failed:
                    self.failures.append(record)
                    self.reasons[record.name] = record.error
                else:
                    records[record.name] = record
        return records

    def _comparison(self, task: str, budget: int, cases: Iterable[Case]) -> Comparison:
        runs: dict[str, list[Measured]] = {}
        missing: dict[str, str] = {}
        for name in self.study.arms:
            own = [case for case in cases if (case.task, case.parameters, case.arm.name) == (task, budget, name)]
            lost = [case for case in own if case.name not in self.measured]
            if not own or lost:
                missing[name] = self._why(task, budget, name, lost)
            else:
                runs[name] = [self.measured[case.name] for case in own]
        return compare(self.study, task, budget, runs, missing)

    def _why(self, task: str, budget: int, arm: str, lost: list[Case]) -> str:
        names = [case.name for case in lost] or [
            case.name
            for case in tuning_cases(self.study)
            if (case.task, case.parameters, case.arm.name) == (task, budget, arm)
        ]
        return next((self.reasons[name] for name in names if name in self.reasons), "it is not finished")

    def tuned(self, task: str, budget: int, arm: str) -> dict[float, float]:
        """Learning rate -> the mean measure on the tuning rows, over the tuning seeds that are finished."""
        found: dict[float, list[float]] = {}
        for run in self.measured.values():
            case = run.case
            if (case.task, case.parameters, case.arm.name) == (
                task,
                budget,
                arm,
            ) and case.seed in self.study.tuning_seeds:
                found.setdefault(case.learning_rate, []).append(mean(run.on(self.study, tuning=True)))
        return {rate: sum(values) / len(values) for rate, values in sorted(found.items())}
