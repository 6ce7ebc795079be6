"""`question = "smallest"`: how small an adapter can be, from the command to the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from heterolora.common.errors import UserError
from heterolora.common.outside import read_toml
from tests.mistakes import refusal
from tests.studies import InThisProcess, measured, rows, study, write
from tests.world import ROOT, World
from tools import study as tool
from tools.studies import question
from tools.studies.planning import FirstRun, Length, StudyPlan, arms, plan
from tools.studies.results import Measured
from tools.studies.sentence import answer
from tools.studies.spec import Arm, Study, read_study
from tools.studies.statistics import Rows, step_down
from tools.studies.summary import compare

ASKS = """
question = "smallest"
seeds = [0, 1]
learning_rates = [1e-2]
measure = "accuracy"
[options]
limit_train_batches = 2
max_epochs = 1
batch_size = 8
accelerator = "cpu"
logger = "csv"
[tasks.reviews]
model = "opt_lora"
dataset = "sst2"
load = "{load}"
dataset_saved_path = "{data}"
[arms.rank4]
method = "uniform"
rank = 4
[arms.rank1]
method = "uniform"
rank = 1
[arms.half]
method = "uniform"
rank = 1
share = 0.5
[arms.upper]
method = "uniform"
rank = 1
blocks = [1]
"""
SIZES = {"large": 800, "middle": 100, "small": 25}


def said(differences: dict[str, float], seeds: int = 5, noise: float = 0.0) -> str:
    """The answer for arms that are better than the largest one by `differences`, in accuracy."""
    random = np.random.default_rng(0)
    planned = Study(
        (None,), tuple(range(seeds)), (1e-3,), (0,), {}, {name: Arm(name, "uniform") for name in SIZES}, "large",
        "accuracy", "smallest",
    )  # fmt: skip
    runs = {}
    for name, size in SIZES.items():
        values = [list(0.7 + differences.get(name, 0.0) + random.normal(0, noise, 40)) for _ in range(seeds)]
        runs[name] = [sized(name, seed, row, size) for seed, row in enumerate(values)]
    return answer(planned, compare(planned, "task", None, runs, {}))


def sized(name: str, seed: int, values: Sequence[float], size: int) -> Measured:
    found = measured(name, seed, values)
    return replace(found, parameters=size)


def test_the_answer_names_the_smallest_arm_that_is_enough_and_the_next_one() -> None:
    sentence = said({"middle": -0.002, "small": -0.05})
    assert sentence == (
        "middle is not worse than large by more than 0.01 (95%), with 1/8 of the parameters. "
        "small, with 1/32 of the parameters, is worse by 0.0500 (0.0500 to 0.0500)."
    )


def test_no_arm_or_every_arm_may_be_enough() -> None:
    none = "No smaller arm is shown to be not worse than large by more than 0.01 (95%)."
    assert said({"middle": -0.02}).startswith(none)
    every = said({"middle": 0.001, "small": -0.001}, seeds=3)
    assert every.startswith("With 3 seeds, the study suggests that small is not worse than large")
    assert every.endswith("It is the smallest arm: smaller ones were not tried.")


def test_an_arm_that_is_not_decided_has_its_bound_and_the_seeds_that_would_decide() -> None:
    sentence = said({"middle": 0.003, "small": 0.0}, noise=0.05)
    assert "middle, with 1/8 of the parameters, may be worse by up to 0.0" in sentence
    assert "To decide, if the difference is as measured: " in sentence


def test_no_arm_is_judged_after_one_that_is_not_shown() -> None:
    """So the level needs no correction."""
    ones = np.ones((5, 30))
    rows_of = {"large": ones, "middle": ones - 0.02, "small": ones - 0.001}
    found = step_down({name: Rows(values, np.ones(30)) for name, values in rows_of.items()}, "large", True, 0.95, 0.01)
    assert found["middle"].corrected == 1
    assert found["small"].corrected == 1
    assert found["small"].interval.low > -0.01


@pytest.mark.slow
def test_arms_have_sizes_of_their_own(tmp_path: Path, world: World, start: InThisProcess) -> None:
    folder = tmp_path / "out"
    study(write(tmp_path, world, ASKS), folder)
    sizes = {row["arm"]: int(row["parameters"]) for row in rows(folder)}
    assert sizes["rank4"] == 4 * sizes["rank1"]
    assert sizes["upper"] == sizes["rank1"] / 2
    assert 0 <= sizes["rank1"] / 2 - sizes["half"] < 64  # not one more rank fits
    text = (folder / "report.md").read_text()
    assert "| p (not worse by 0.01) | parameters | of rank4 |" in text
    assert "| 25.0% |" in text
    page = (folder / "report.html").read_text()
    for caption in ("accuracy over parameters", "Step time over parameters", "Memory over parameters"):
        assert caption in page
    with pytest.raises(UserError, match=r"arm rank4 has more parameters .* than the first one, rank1; let the largest"):
        study(write(tmp_path, world, "baseline = 'rank1'\n" + ASKS), folder)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('question = "smallest"', 'question = "smallest"\nparameters = [600]', "give each arm its own rank and share"),
        ('question = "smallest"', "parameters = [600]", "rank has no effect on uniform, which spends the budget"),
        ('question = "smallest"', 'question = "small"', 'expected "better" or "smallest"'),
        ("share = 0.5", "share = 1.5", "share is 1.5; expected a number above 0, up to 1"),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, world: World, old: str, new: str, message: str) -> None:
    assert message in refusal(read_study, write(tmp_path, world, ASKS, **{old: new}))


def test_the_study_file_in_the_documentation_can_be_read(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "studies.md").read_text()
    (block,) = [block for block in text.split("```toml\n") if block.startswith('question = "smallest"')]
    path = tmp_path / "study.toml"
    path.write_text(block.split("```")[0])
    assert read_study(path).parameters == (None,)


# ---- the plan


MEASURED = FirstRun(step=0.5, rest=10.0, validation=2.0, blocks=6)


@pytest.mark.parametrize("hours", [0.5, 1, 2, 8, 50])
def test_a_plan_fits_into_the_time(hours: float) -> None:
    found = plan(MEASURED, Length(epoch=200, run=600, fixed=False), 3600 * hours)
    assert found.seconds <= 3600 * hours
    assert 100 <= found.steps <= 600
    assert found.epochs == -(-found.steps // 200)
    assert next(iter(found.arms)) == "rank8"


def test_more_time_gives_more_seeds_arms_and_steps() -> None:
    found = [plan(MEASURED, Length(200, 600, fixed=False), 3600 * hours) for hours in (0.5, 1, 2, 8)]
    for less, more in pairwise(found):
        assert (len(less.seeds), len(less.arms)) <= (len(more.seeds), len(more.arms))
    assert len(found[0].seeds) == 3
    assert len(found[-1].seeds) == 8
    assert len(found[-1].arms) == len(arms(6))


def test_a_run_whose_length_is_given_keeps_it() -> None:
    length = Length(epoch=200, run=40, fixed=True)
    assert plan(MEASURED, length, 3600 * 50).steps == 40
    with pytest.raises(UserError, match=r"the time is too short: 18 runs of 40 steps .* hours"):
        plan(MEASURED, length, 60)


def test_the_time_that_is_asked_for_is_enough() -> None:
    line = refusal(plan, MEASURED, Length(200, 600, fixed=False), 60)
    hours = float(line.split("--hours ")[1].split(",")[0])
    assert plan(MEASURED, Length(200, 600, fixed=False), 3600 * hours).steps >= 100


def test_a_model_of_one_block_has_no_upper_half() -> None:
    assert "rank1_upper_half" in arms(2)
    assert "rank1_upper_half" not in arms(1)


def test_one_command_measures_plans_runs_and_continues(
    tmp_path: Path,
    world: World,
    start: InThisProcess,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    two = {name: arms(2)[name] for name in ("rank8", "rank1")}
    measurements = []

    def small(found: FirstRun, length: Length, seconds: float) -> StudyPlan:
        measurements.append((found, length, seconds))
        return StudyPlan(two, (1e-3, 1e-2), (0, 1), 2, 1, 60.0)

    monkeypatch.setattr(question, "plan", small)
    command = ["--question", "smallest", "--hours", "2", "--model", "opt_lora", "--load", str(world.opt), "--dataset",
               "sst2", "--dataset-saved-path", str(world.sst2), "--batch-size", "8", "--accelerator", "cpu",
               "--output", str(tmp_path / "out")]  # fmt: skip
    tool.main(command)
    ((found, length, seconds),) = measurements
    assert found.step > 0
    assert found.blocks == 2
    assert not length.fixed
    assert length.run == 20 * length.epoch  # so few rows need more than three epochs
    assert seconds == 7200
    document = read_toml(tmp_path / "out" / "study.toml", "the study", "")
    assert document["options"]["max_steps"] == 2
    assert document["extend_rates"] == 2
    assert document["options"]["limit_test_batches"] == 50
    assert {row["arm"] for row in rows(tmp_path / "out")} == {"rank8", "rank1"}
    output = capsys.readouterr().out
    assert "plan: 2 arms (rank8, rank1), each at 2 learning rates" in output

    start.commands.clear()
    tool.main(command)
    assert start.commands == []
    with pytest.raises(UserError, match="has the study of another command; give another --output, or continue"):
        tool.main([*command, "--max-token-len", "16"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("study.toml", "--hours", "2"), "--hours has no effect without --question"),
        (("study.toml", "--epochs", "2"), "unrecognized arguments: --epochs 2"),
        (("--question", "smallest", "--max-epoch", "2"), "--max-epoch"),
        (("--question", "smallest", "--hours", "0"), "--hours"),
        (("--question", "smallest", "--learning-rate", "1e-3"), "the study sets learning_rate itself"),
        (("--question", "smallest", "--max-epochs", "-1"), "neither --max-epochs nor --max-steps ends the run"),
        (("--question", "smallest", "--model", "facebook/opt-125m"), "the study has a model without LoRA"),
    ],
)
def test_mistakes_on_the_command_line(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    assert message in refusal(tool.main, [*arguments, "--output", str(tmp_path / "out")])


def test_an_options_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "options.toml").write_text("batch_size = 4\n")
    with pytest.raises(UserError, match="--config cannot be given with --question; give the options themselves"):
        tool.main(["--question", "smallest", "--config", str(tmp_path / "options.toml")])
