"""Runs many cases, counts how they ended, and keeps the smallest case of every failure as a regression.

python -m tests.fuzz                       5,000 cases; failures become files of tests/fuzz/regressions/
python -m tests.fuzz --cases 30 --stable   the same cases every time; nothing is kept
python -m tests.fuzz --regressions         the kept cases only
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import os
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import datasets
import evaluate
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from dataset.encoding import confined
from tests.forked import Forked, Outcome, run_program
from tests.fuzz.case import Case
from tests.fuzz.kinds import cases, sound, weights
from tests.fuzz.others import NAN_WEIGHTS
from tests.fuzz.world import make_sound_world

_TURN = 3  # cases that hypothesis draws with one seed
_IDLE = 30  # turns without a new case, after which a kind has no more

REGRESSIONS = Path(__file__).parent / "regressions"


@dataclass
class Tally:
    """How the cases of a kind ended."""

    cases: int = 0
    codes: Counter[int | None] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    memory: int = 0  # MiB, the most that a case took
    seconds: float = 0.0  # of processor time

    def add(self, outcome: Outcome) -> None:
        self.cases += 1
        self.codes[outcome.code] += 1
        if outcome.problem is not None:
            self.problems[outcome.problem] += 1
        self.memory = max(self.memory, outcome.memory)
        self.seconds += outcome.seconds

    def merge(self, other: Tally) -> None:
        self.cases += other.cases
        self.codes += other.codes
        self.problems += other.problems
        self.memory = max(self.memory, other.memory)
        self.seconds += other.seconds

    def row(self) -> tuple[int, ...]:
        """cases, passed, user errors, tracebacks, wrong ends, hangs, MiB, seconds."""
        tracebacks = sum(count for what, count in self.problems.items() if what.startswith("traceback"))
        hangs = self.problems["hang"]
        others = sum(self.problems.values()) - tracebacks - hangs
        return (self.cases, self.codes[0], self.codes[2], tracebacks, others, hangs, self.memory, round(self.seconds))


class ProblemError(AssertionError):
    """A case with a problem. Each problem has a subclass, so that hypothesis shrinks each without taking another."""


class Campaign:
    """Sound files, and cases that damage them."""

    def __init__(self, folder: Path) -> None:
        self._world, self._numbers = folder / "world", itertools.count()
        self._world.mkdir()
        made = Forked(lambda: make_sound_world(self._world), folder).wait(600.0)
        if made.code != 0:
            raise RuntimeError(f"the sound files could not be made:\n{made.out}\n{made.err}")
        gc.disable()  # a collection in a child would copy all memory of the parent
        self._folder = folder

    def run(self, case: Case) -> Outcome:
        """Run a case in a folder of its own, with an empty data cache."""
        folder = self._folder / f"case-{next(self._numbers)}"

        def command() -> object:
            case.prepare(self._world, folder)
            os.chdir(folder)
            datasets.config.HF_DATASETS_CACHE = folder / "cache"
            evaluate.config.HF_METRICS_CACHE = folder / "cache" / "metrics"
            confined.SECONDS, confined.MEMORY = 2, 2**29  # a test need not wait as long as a user
            return run_program(case.entry, case.command(self._world, folder))

        try:
            outcome = Forked(command, folder).wait()
            if "debug" in case.arguments and outcome.code == 2:  # --log-level debug shows the traceback of an error
                outcome = replace(outcome, err=re.sub(r"(?ms)\A.*(?=^error: )", "", outcome.err))
            passed = ("NaN in a weight",) if case.kind == NAN_WEIGHTS and outcome.code == 0 else ()
            return replace(outcome, lost=case.lost(folder) + passed)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def unsound(self) -> list[tuple[Case, Outcome]]:
        """The commands that fail on sound files. Those of options files name a model that is not there."""
        outcomes = [(case, self.run(case)) for case in sound(self._world) if case.kind != "options file"]
        return [(case, outcome) for case, outcome in outcomes if outcome.code != 0 or outcome.problem]

    def run_kind(
        self, name: str, count: int, campaign_seed: int, shrink: bool
    ) -> tuple[Tally, dict[str, tuple[Case, Outcome]]]:
        """Run `count` cases of a kind, or all that it has. Returns the tally, and a case for each problem: the smallest
        if asked for.
        """
        tally, known, idle = Tally(), {}, 0
        search = _Search(self.run, cases(name, self._world), shrink)
        for turn in itertools.count():
            before = tally.cases
            # Seeds of campaigns that are near to each other have no turn in common.
            search.turn(random.Random(f"{campaign_seed} {name} {turn}").getrandbits(64), tally, known, count)
            idle = 0 if tally.cases > before else idle + 1
            if tally.cases >= count or idle == _IDLE:
                return tally, known
        raise AssertionError


class _Search:
    """Draws cases of a strategy. Each turn has a seed of its own, because hypothesis mostly varies what it drew before.

    Every turn begins with the same simplest case, so a case that was run before is not run again.
    """

    def __init__(self, run: Callable[[Case], Outcome], strategy: SearchStrategy[Case], shrink: bool) -> None:
        self._run, self._strategy, self._shrink = run, strategy, shrink
        self._outcomes: dict[str, Outcome] = {}  # by the case as JSON

    def turn(self, turn_seed: int, tally: Tally, found: dict[str, tuple[Case, Outcome]], count: int) -> None:
        """Run a few cases, up to the first new problem, whose case is shrunk."""
        known, new = set(found), {}

        @seed(turn_seed)
        @settings(
            max_examples=_TURN,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            print_blob=False,
            report_multiple_bugs=False,
        )
        @given(self._strategy)
        def check(case: Case) -> None:
            key = case.to_json()
            is_new = key not in self._outcomes
            if is_new and not new and tally.cases >= count:
                return
            outcome = self._outcomes[key] = self._outcomes.get(key) or self._run(case)
            if is_new and not new:  # the others only shrink a case
                tally.add(outcome)
            problem = outcome.problem
            if problem is None or problem in known:
                return
            found[problem] = case, outcome
            if self._shrink:
                new.setdefault(problem, type("Problem", (ProblemError,), {}))
                raise new[problem](problem)

        with suppress(ProblemError):
            check()


def shares(count: int) -> dict[str, int]:
    """How many of `count` cases each kind gets."""
    total = sum(weights().values())
    return {name: max(1, round(count * weight / total)) for name, weight in weights().items()}


def keep(case: Case) -> Path:
    """Write a case to the regressions. Two causes may have one problem, so the name follows from the case."""
    text = case.to_json()
    name = f"{case.kind.replace(' ', '-')}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.json"
    REGRESSIONS.mkdir(exist_ok=True)
    (REGRESSIONS / name).write_text(text, encoding="utf-8")
    return REGRESSIONS / name


def kept() -> Iterator[tuple[str, Case]]:
    for path in sorted(REGRESSIONS.glob("*.json")):
        yield path.stem, Case.from_json(path.read_text(encoding="utf-8"))
