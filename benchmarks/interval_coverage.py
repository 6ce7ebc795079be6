"""Whether the intervals of tools/study.py hold what they promise: simulated studies in which no arm differs.

Each study has eight arms, and the first one is the baseline of the others. The table has the share of the 95% intervals
that contain the true difference, 0, and the share of studies with a false claim: a p value of at most 0.05 after Holm's
correction, for a study of two arms and of all eight.

example:
  python -m benchmarks.interval_coverage --studies 10000
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from model.mean_squares import Figures, MeanSquares

ARMS, SEEDS, ALPHA = 8, (3, 5, 8), 0.05
_AT_A_TIME = 50  # studies, which bounds memory
_HEAD = ("case", "rows", *(f"{what}, {seeds} seeds" for what in ("covers", "false, 2 arms", "false, 8 arms")
                           for seeds in SEEDS))  # fmt: skip

Draw = Callable[[tuple[int, ...]], Figures]  # shape -> values of mean 0


@dataclass(frozen=True)
class Parts:
    """The standard deviations of what seeds, rows and a seed on a row add to the difference of two arms."""

    seeds: float
    rows: float
    both: float

    def values(self, draw: Draw, studies: int, seeds: int, rows: int) -> Figures:
        """(studies, arms, seeds, rows): each arm has its own part of a difference."""
        of_seeds, of_rows = draw((studies, ARMS, seeds, 1)), draw((studies, ARMS, 1, rows))
        both = draw((studies, ARMS, seeds, rows))
        return (self.seeds * of_seeds + self.rows * of_rows + self.both * both) / math.sqrt(2)


@dataclass(frozen=True)
class Case:
    """What the values of a study are like.

    Attributes:
        tails: of all parts: `normal`, `heavy` (Student's t with 3 degrees of freedom) or `skewed` (exponential).
        tokens: whether rows count 2 to 96 tokens, as those of a language model do, instead of 1.
        accuracy: the share of rows that each arm gets right; then `parts` are those of the probit of a row.
    """

    name: str
    rows: int
    parts: Parts
    tails: str = "normal"
    tokens: bool = False
    accuracy: float | None = None

    def draw(self, random: np.random.Generator, studies: int, seeds: int) -> tuple[Figures, Figures]:
        """(studies, arms, seeds, rows) totals and (studies, rows) counts."""
        values = self.parts.values(self._draw_of(random), studies, seeds, self.rows)
        counts = np.ones((studies, self.rows))
        if self.accuracy is not None:
            values = _hits(values, random.standard_normal((studies, 1, 1, self.rows)), self.accuracy)
        if self.tokens:
            counts = np.exp(random.normal(3.5, 0.8, counts.shape)).clip(2, 96).round()
        return values * counts[:, None, None, :], counts

    def _draw_of(self, random: np.random.Generator) -> Draw:
        draws: dict[str, Draw] = {
            "normal": random.standard_normal,
            "heavy": lambda shape: random.standard_t(3, shape) / math.sqrt(3),
            "skewed": lambda shape: random.standard_exponential(shape) - 1,
        }
        return draws[self.tails]


def _hits(values: Figures, difficulty: Figures, accuracy: float) -> Figures:
    """1 where an arm is right. All arms share the difficulty of a row."""
    every = values + difficulty
    return (every <= np.quantile(every, accuracy)).astype(np.float64)


CASES = (
    Case("seeds only", 200, Parts(1, 0, 0.001)),
    Case("rows only", 200, Parts(0, 1, 0.001)),
    Case("seeds and rows", 200, Parts(0.1, 1, 0.001)),
    Case("a seed on a row only", 200, Parts(0, 0, 1)),
    Case("all three", 200, Parts(0.15, 0.6, 1)),
    Case("all three, heavy tails", 200, Parts(0.15, 0.6, 1), tails="heavy"),
    Case("all three, skewed", 200, Parts(0.15, 0.6, 1), tails="skewed"),
    Case("all three, token counts", 200, Parts(0.15, 0.6, 1), tokens=True),
    Case("accuracy of 0.9", 200, Parts(0.15, 0.3, 0.6), accuracy=0.9),
    Case("accuracy of 0.97", 400, Parts(0.15, 0.3, 0.6), accuracy=0.97),
    Case("as `snip` on WikiText-2", 240, Parts(0.041, 0.1, 0.1), tokens=True),
    Case("as rank 8 on WikiText-2", 48, Parts(0.006, 0.04, 0.04), tokens=True),
)


@dataclass(frozen=True)
class Shares:
    """Of the intervals that contain 0, and of the studies with a false claim."""

    covers: float
    false_of_all: float

    @property
    def false_of_two(self) -> float:
        """A study of two arms has one interval."""
        return 1 - self.covers

    def keeps_the_promise(self, seeds: int) -> bool:
        """Whether the shares are within what docs/studies.md promises."""
        return (0.925 if seeds < 5 else 0.935) <= self.covers <= 0.99 and self.false_of_all <= 0.065


def simulate(case: Case, seeds: int, studies: int, random: np.random.Generator) -> Shares:
    """The smallest p value is at most ALPHA after Holm's correction where its interval at ALPHA / comparisons does not
    contain 0, because the p values belong to the intervals.
    """
    covers, false_of_all = [], []
    for done in range(0, studies, _AT_A_TIME):
        totals, counts = case.draw(random, min(_AT_A_TIME, studies - done), seeds)
        apart = totals[:, 1:] - totals[:, :1]
        squares = MeanSquares.of(apart, np.broadcast_to(counts[:, None], (len(apart), ARMS - 1, case.rows)))
        distance = np.abs(squares.estimate)
        covers.append(distance <= squares.half_width(ALPHA))
        false_of_all.append((distance > squares.half_width(ALPHA / (ARMS - 1))).any(-1))
    return Shares(float(np.concatenate(covers).mean()), float(np.concatenate(false_of_all).mean()))


def table(studies: int, cases: Sequence[Case] = CASES) -> Iterator[str]:
    """The lines of the table, in Markdown."""
    yield "| " + " | ".join(_HEAD) + " |"
    yield "|" + " --- |" * len(_HEAD)
    random = np.random.default_rng(0)
    for case in cases:
        found = [simulate(case, seeds, studies, random) for seeds in SEEDS]
        columns = ("covers", "false_of_two", "false_of_all")
        shares = [f"{getattr(each, column):.1%}" for column in columns for each in found]
        yield "| " + " | ".join((case.name, str(case.rows), *shares)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=10_000, help="of each case and number of seeds (default: 10000)")
    for line in table(parser.parse_args().studies):
        print(line, flush=True)


if __name__ == "__main__":
    main()
