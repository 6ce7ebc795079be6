"""Plans a study of the smallest adapter into a given time: how many arms, learning rates, seeds and steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from heterolora.common.errors import UserError

RATES = (3e-4, 1e-3, 3e-3, 9e-3, 2.7e-2)
EXTEND = 2  # rates beyond the ends of these that an arm may try
_USED = 0.9  # of the time; the rest is for what was not measured
_FEWEST_STEPS = 100  # of a run that shall say something, if the whole run is not shorter


@dataclass(frozen=True)
class FirstRun:
    """What was measured before the plan: a run of a few steps of the largest arm.

    Attributes:
        step: seconds of a step.
        rest: seconds of a run besides its steps and validations: its start, and the measurement at its end.
        validation: seconds of one validation during training.
        blocks: of the model.
    """

    step: float
    rest: float
    validation: float
    blocks: int


@dataclass(frozen=True)
class Length:
    """Optimizer steps of an epoch, and of a run with the options that were given. `fixed`: they say how long it is."""

    epoch: int
    run: int
    fixed: bool


@dataclass(frozen=True)
class StudyPlan:
    """A study that fits into the time."""

    arms: Mapping[str, Mapping[str, Any]]
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    steps: int
    epochs: int
    seconds: float

    @property
    def runs(self) -> int:
        """Every rate and one beyond them with the first seed, and the best one with the others."""
        return len(self.arms) * _runs_of_arm(self.rates, len(self.seeds))


def _runs_of_arm(rates: Sequence[float], seeds: int) -> int:
    return len(rates) + 1 + seeds - 1


def arms(blocks: int) -> dict[str, dict[str, Any]]:
    """From the most to the least important one; the largest one first."""
    upper = list(range(blocks // 2, blocks))
    every = {
        "rank8": {"method": "uniform", "rank": 8},
        "rank1": {"method": "uniform", "rank": 1},
        "quarter_of_rank1": {"method": "uniform", "rank": 1, "share": 0.25},
        "rank2": {"method": "uniform", "rank": 2},
        "tenth_of_rank1": {"method": "uniform", "rank": 1, "share": 0.1},
        "rank1_upper_half": {"method": "uniform", "rank": 1, "blocks": upper},
        "rank4": {"method": "uniform", "rank": 4},
    }
    return every if upper and len(upper) < blocks else {k: v for k, v in every.items() if "blocks" not in v}


def plans(measured: FirstRun, length: Length, seconds: float) -> Iterator[StudyPlan]:
    """The plans to choose from, the most thorough one first. Each has as many steps as the time allows."""
    for seeds, most_arms, rates in ((8, 7, RATES), (8, 5, RATES), (5, 5, RATES), (5, 4, RATES[1:]), (3, 4, RATES[1:]),
                                    (3, 3, RATES[1:-1])):  # fmt: skip
        some = dict(list(arms(measured.blocks).items())[:most_arms])
        runs = len(some) * _runs_of_arm(rates, seeds)
        room = _USED * seconds / runs - measured.rest
        steps = length.run if length.fixed else min(length.run, _steps_within(measured, length.epoch, room))
        epochs = max(1, -(-steps // length.epoch))
        each = measured.rest + steps * measured.step + epochs * measured.validation
        yield StudyPlan(some, rates, tuple(range(seeds)), steps, epochs, runs * each)


def _steps_within(measured: FirstRun, epoch: int, seconds: float) -> int:
    """Steps that fit, with a validation at the end of each epoch, also of the last one."""
    whole = int(max(0.0, seconds) // (epoch * measured.step + measured.validation))
    left = seconds - whole * (epoch * measured.step + measured.validation) - measured.validation
    return whole * epoch + max(0, int(left // measured.step))


def plan(measured: FirstRun, length: Length, seconds: float) -> StudyPlan:
    """The most thorough plan that fits. Raises UserError if none does."""
    enough = min(length.run, _FEWEST_STEPS)
    for found in plans(measured, length, seconds):
        if found.steps >= enough and found.seconds <= seconds:
            return found
    *_, shortest = plans(measured, Length(length.epoch, enough, fixed=True), seconds)
    hours = shortest.seconds / 3600
    raise UserError(
        f"the time is too short: {shortest.runs} runs of {shortest.steps} steps take {hours:.2g} hours of one worker",
        f"give --hours {hours / _USED * 1.05:.2g}, or shorter steps by --batch-size or --max-token-len",
    )
