"""Carries a study out: what is finished is read, the rest is run, in waves: scores, tuning, measuring."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from actions.training.halving import shares
from heterolora.common.errors import UserError
from tools.studies.jobs import Case, Commands, Job, Key, measuring_cases, prefix, tuning_cases
from tools.studies.results import Measured, Rung, beyond, read_measured, rung_of
from tools.studies.running import JobRecord, Start, check_unfinished, record_of, run_here, run_submitted, start_process
from tools.studies.spec import Study
from tools.studies.summary import UNFINISHED, Comparison, compare

Track = Callable[[Iterator[JobRecord], int, str], Iterator[JobRecord]]


class Execution:
    """The state of a study in `folder`.

    Attributes:
        measured: name of a run -> its result, for all finished runs; `parts`: for all finished parts of runs.
        rungs: the comparisons of the learning rates of each arm.
        untuned: the learning rates without a result, and why.
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
        self.parts: dict[str, Measured] = {}
        self.rungs: dict[Key, list[Rung]] = {}
        self.untuned: dict[Key, dict[float, str]] = {}
        self.failures: list[JobRecord] = []
        self.reasons: dict[str, str] = {}

    @property
    def jobs_folder(self) -> Path:
        return self.folder / "jobs"

    def comparisons(self, run_jobs: bool, track: Track) -> list[Comparison]:
        """Run the study, if `run_jobs`, and compare the arms of each task and budget."""
        tuning = list(tuning_cases(self.study))
        measuring = (replace(case, seed=seed) for case, seed in itertools.product(tuning, self.study.seeds))
        scoring = {job.name: job for case in (*tuning, *measuring) for job in [self.commands.scoring(case)]}
        scored = self._run(scoring, run_jobs, track, "scores")
        self._check_sizes(tuning, scored)
        rates = self._tune(tuning, scored, run_jobs, track)
        cases = list(measuring_cases(self.study, rates))
        self.measured |= self._train(cases, scored, run_jobs, track, "measuring")
        pairs = itertools.product(self.study.tasks, self.study.parameters)
        return [self._comparison(task, budget, cases) for task, budget in pairs]

    def _check_sizes(self, cases: Iterable[Case], scored: Collection[str]) -> None:
        """Raise UserError if an arm is larger than the one that shall be replaced by a smaller one."""
        if self.study.question != "smallest":
            return
        known = {case.key: case for case in cases if self.commands.scoring(case).name in scored}
        sizes: dict[Key, int] = {}
        for key, case in known.items():
            with suppress(UserError):  # of an arm that has no result, and a reason
                sizes[key] = self.commands.budget(case)
        for (task, parameters, arm), size in sizes.items():
            if size > sizes.get((task, parameters, self.study.baseline), size):
                raise UserError(
                    f"arm {arm} has more parameters ({size:,}) than the first one, {self.study.baseline}",
                    "let the largest arm be the first, or the baseline",
                )

    def _tune(
        self, cases: Sequence[Case], scored: Mapping[str, JobRecord], run_jobs: bool, track: Track
    ) -> dict[Key, float]:
        """The best learning rate of every arm that has one."""
        left: dict[Key, Sequence[float]] = {case.key: self.study.learning_rates for case in cases}
        halving = self.study.tuning == "halving"
        for share in shares(len(self.study.learning_rates))[:-1] if halving else [1.0]:
            waiting = [replace(case, share=share) for case in cases if case.learning_rate in left[case.key]]
            found = self._train(waiting, scored, run_jobs, track, f"tuning to {share:.0%}" if halving else "tuning")
            (self.parts if halving else self.measured).update(found)
            for key in left:
                rung = rung_of(self.study, share, [run for run in found.values() if run.case.key == key])
                self.rungs.setdefault(key, []).append(rung)
                self._note_untuned(key, waiting, found, rung)
                left[key] = rung.best
        best = {key: rates[0] for key, rates in left.items() if rates}
        for _ in range(self.study.extend_rates):
            self._try_beyond(cases, best, scored, run_jobs, track)
        return best

    def _try_beyond(
        self,
        cases: Sequence[Case],
        best: dict[Key, float],
        scored: Mapping[str, JobRecord],
        run_jobs: bool,
        track: Track,
    ) -> None:
        """Try one more rate for every arm whose best one is an end of those that it has tried."""
        rates = {key: rate for key in best if (rate := beyond(self._tried(key), best[key])) is not None}
        first = self.study.learning_rates[0]
        own = [case for case in cases if case.learning_rate == first and case.key in rates]
        waiting = [replace(case, learning_rate=rates[case.key]) for case in own]
        found = self._train(waiting, scored, run_jobs, track, "tuning beyond the ends")
        self.measured |= found
        for key in rates:
            rung = rung_of(self.study, 1.0, [run for run in self.measured.values() if run.case.key == key])
            self.rungs[key], best[key] = [rung], rung.best[0]
            self._note_untuned(key, waiting, found, rung)

    def _note_untuned(self, key: Key, waiting: Iterable[Case], found: Collection[str], rung: Rung) -> None:
        """Note why learning rates of an arm have no result. `found`: the names of the runs that have one."""
        for case in waiting:
            if case.key == key and case.name not in found:
                reason = self.reasons.get(case.name, UNFINISHED)
                self.untuned.setdefault(key, {}).setdefault(case.learning_rate, reason)
        for rate in (rate for rate, value in rung.values.items() if not math.isfinite(value)):
            self.untuned.setdefault(key, {}).setdefault(rate, f"its {self.study.measure} is not finite")

    def _tried(self, key: Key) -> set[float]:
        """The learning rates of an arm, with a result or without."""
        return {rate for rung in self.rungs[key] for rate in rung.values} | self.untuned.get(key, {}).keys()

    def _train(
        self, cases: Iterable[Case], scored: Mapping[str, JobRecord], run_jobs: bool, track: Track, what: str
    ) -> dict[str, Measured]:
        """The results of the runs that ended well."""
        jobs, scores = {}, {}
        for case in cases:
            if (scoring := scored.get(self.commands.scoring(case).name)) is None:
                self.reasons.setdefault(case.name, "its scores are missing" if run_jobs else UNFINISHED)
                continue
            scores[case.name] = scoring
            try:
                jobs[case.name] = (case, self.commands.training(case))
            except UserError as mistake:
                self.reasons[case.name] = str(mistake)
        records = self._run({name: job for name, (_, job) in jobs.items()}, run_jobs, track, what)
        found = {}
        for name, (case, job) in jobs.items():
            if name in records:
                elements = [item.element for item in self.commands.elements(case)]
                seconds = records[name].seconds + self._seconds_before(case, scores[name])
                found[name] = read_measured(case, job.results, self.study.measure, elements, seconds)
        return found

    def _seconds_before(self, case: Case, scores: JobRecord) -> float:
        """The time that the run took before this part of it, with the scoring."""
        earlier = [part.seconds for part in self.parts.values() if part.case.run == case.run]
        return max(earlier, default=0.0 if case.arm.heuristic == "constant" else scores.seconds)

    def _run(self, jobs: Mapping[str, Job], run_jobs: bool, track: Track, what: str) -> dict[str, JobRecord]:
        """The records of all jobs that ended well; runs those that have none."""
        records = {name: record for name, job in jobs.items() if (record := record_of(job, self.jobs_folder))}
        missing = [job for name, job in jobs.items() if name not in records]
        if not run_jobs:
            self.reasons |= {job.name: UNFINISHED for job in missing}
            return records
        for job in missing:
            check_unfinished(job, self.jobs_folder)
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
            own = [case for case in cases if case.key == (task, budget, name)]
            lost = [case for case in own if case.name not in self.measured]
            if not own or lost:
                missing[name] = self._why((task, budget, name), lost)
            else:
                runs[name] = [self.measured[case.name] for case in own]
        untuned = {arm: lost for (where, size, arm), lost in self.untuned.items() if (where, size) == (task, budget)}
        tried = {key[2]: self._tried(key) for key in self.rungs if key[:2] == (task, budget)}
        return compare(self.study, task, budget, runs, missing, untuned, tried)

    def _why(self, key: Key, lost: list[Case]) -> str:
        names = [case.name for case in lost]
        names += [name for name in self.reasons if not lost and name.startswith(f"{prefix(key)}.lr")]
        return next((self.reasons[name] for name in names if name in self.reasons), UNFINISHED)
