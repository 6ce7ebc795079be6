"""`tools/study.py`, from the study file to its report."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from heterolora.errors import UserError
from main import main as program
from tests.world import World
from tools import study as tool
from tools.studies import execution, peft_run
from tools.studies.figures import pareto
from tools.studies.spec import PEFT_METHODS, read_study

MINIMAL = """
parameters = [600]
seeds = [0, 1]
learning_rates = [1e-3, 1e-2]
measure = "accuracy"
[options]
max_epochs = 1
batch_size = 8
pretrained = true
accelerator = "cpu"
logger = "csv"
imp_limit_test_batches = 2
[tasks.reviews]
model = "opt_lora"
dataset = "sst2"
load = "{load}"
dataset_saved_path = "{data}"
[arms.uniform]
method = "uniform"
[arms.grad_norm]
method = "grad_norm"
rank = 4
"""


def write(folder: Path, world: World, text: str = MINIMAL, **replaced: str) -> Path:
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    path = folder / "study.toml"
    path.write_text(text.replace("{load}", str(world.opt)).replace("{data}", str(world.sst2)))
    return path


class InThisProcess:
    """Runs the commands of a study in the process of the test, and keeps them."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.fail: str | None = None  # part of the name of runs that fail

    def __call__(self, arguments: Sequence[str], log: Path) -> int:
        self.commands.append([*arguments])
        if self.fail and self.fail in log.name:
            log.write_text("error: the base is damaged; give another\n")
            return 2
        module, *options = arguments[1:]
        with log.open("a") as output, contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            if module == "main":
                return program(options)
            peft_run.main(options)
            return 0


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> InThisProcess:
    started = InThisProcess()
    defaults = list(execution.Execution.__init__.__defaults__)
    monkeypatch.setattr(execution.Execution.__init__, "__defaults__", (*defaults[:-1], started))
    return started


def study(path: Path, folder: Path, *more: str) -> None:
    tool.main([str(path), "--output", str(folder), *more])


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_study_from_file_to_report(
    tmp_path: Path, world: World, start: InThisProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    study(write(tmp_path, world), folder)
    found = rows(folder)
    assert {row["arm"] for row in found} == {"uniform", "grad_norm"}
    assert all(int(row["parameters"]) <= 600 for row in found)
    # The smallest rank costs 32 + 32 here, and the rest of the budget is below it.
    assert all(600 - int(row["parameters"]) < 64 for row in found)
    measured = [row for row in found if row["rows"] == "measuring"]
    for arm in ("uniform", "grad_norm"):
        own = [row for row in measured if row["arm"] == arm]
        assert {row["learning_rate"] for row in own if row["seed"] == "1"} <= {"0.001", "0.01"}
        assert len([row for row in own if row["seed"] == "1"]) == 1  # only the best rate is measured with other seeds
    page = (folder / "report.html").read_text()
    assert "http" not in page.split("</script>")[-1]  # no network outside the inlined script
    text = (folder / "report.md").read_text()
    assert "uniform" in capsys.readouterr().out
    assert "| grad_norm |" in text
    assert "600 parameters" in text

    # Started again, nothing runs.
    start.commands.clear()
    study(write(tmp_path, world), folder)
    assert start.commands == []
    assert rows(folder) == found


def test_runs_of_one_seed_are_paired(tmp_path: Path, world: World, start: InThisProcess) -> None:
    """Both arms of a seed measure the same rows, and start from the same head: without steps they are equal."""
    text = MINIMAL.replace("max_epochs = 1", "max_epochs = 1\nlimit_train_batches = 1").replace("1e-3, 1e-2", "1e-30")
    study(write(tmp_path, world, text), tmp_path / "out")
    by_arm = {}
    for arm in ("uniform", "grad_norm"):
        run = tmp_path / "out" / "runs" / f"reviews.600.{arm}.lr1e-30.seed1"
        by_arm[arm] = (run / "rows.csv").read_text()
    assert by_arm["uniform"] == by_arm["grad_norm"]


def test_row_results_agree_with_the_metrics(tmp_path: Path, world: World, start: InThisProcess) -> None:
    study(write(tmp_path, world), tmp_path / "out")
    for run in (tmp_path / "out" / "runs").glob("*.seed1"):
        if "scores" in run.name:
            continue
        with (run / "rows.csv").open(newline="") as file:
            found = list(csv.DictReader(file))
        metrics = json.loads((run / "metrics.json").read_text())["metrics"]["validation"]
        assert [int(row["index"]) for row in found] == list(range(13))
        assert sum(int(row["correct"]) for row in found) / 13 == pytest.approx(metrics["accuracy"])
        assert sum(float(row["loss"]) for row in found) / 13 == pytest.approx(metrics["loss"], rel=1e-5)


def test_a_failed_run_is_reported_and_tried_again(
    tmp_path: Path, world: World, start: InThisProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    start.fail = "grad_norm.lr"
    study(write(tmp_path, world), tmp_path / "out")
    assert "error: the base is damaged" in capsys.readouterr().out
    assert "grad_norm has no result: error: the base is damaged" in (tmp_path / "out" / "report.md").read_text()
    start.fail, start.commands = None, []
    study(write(tmp_path, world), tmp_path / "out")
    assert all("grad_norm" in " ".join(command) for command in start.commands)
    assert {row["arm"] for row in rows(tmp_path / "out")} == {"uniform", "grad_norm"}


def test_a_run_that_was_killed_continues_from_its_checkpoint(
    tmp_path: Path, world: World, start: InThisProcess
) -> None:
    folder = tmp_path / "out"
    study(write(tmp_path, world), folder)
    name = "reviews.600.uniform.lr0.01.seed0"
    complete = (folder / "runs" / name / "rows.csv").read_text()
    (folder / "runs" / name / "metrics.json").unlink()  # as after a kill: no result, but a checkpoint
    start.commands.clear()
    study(write(tmp_path, world), folder)
    assert [command[2:4] for command in start.commands] == [["train", "--resume-training"]]
    assert (folder / "runs" / name / "rows.csv").read_text() == complete


@pytest.mark.slow
def test_submitit_runs_the_same_study(tmp_path: Path, world: World) -> None:
    """The local executor of submitit starts real processes, as a job array does."""
    one_rate = MINIMAL.replace("seeds = [0, 1]", "seeds = [0]").replace("[1e-3, 1e-2]", "[1e-2]")
    study(write(tmp_path, world, one_rate), tmp_path / "out", "--executor", "local")
    found = rows(tmp_path / "out")
    assert {row["arm"] for row in found} == {"uniform", "grad_norm"}
    assert all(float(row["seconds"]) > 0 for row in found)


@pytest.mark.parametrize("method", PEFT_METHODS)
def test_pefts_own_methods_run_in_the_same_loop(
    tmp_path: Path, world: World, start: InThisProcess, method: str
) -> None:
    text = MINIMAL.replace('[arms.grad_norm]\nmethod = "grad_norm"\nrank = 4', f'[arms.peft]\nmethod = "peft:{method}"')
    study(write(tmp_path, world, text.replace("[600]", "[3000]")), tmp_path / "out")
    found = [row for row in rows(tmp_path / "out") if row["arm"] == "peft"]
    assert found
    assert all(0 < int(row["parameters"]) <= 3000 for row in found)


def test_pefts_lora_is_our_uniform_lora(tmp_path: Path, world: World, start: InThisProcess) -> None:
    """The same places, ranks and scaling: the losses agree up to A's own draw, which B = 0 hides at the start."""
    text = MINIMAL.replace('[arms.grad_norm]\nmethod = "grad_norm"\nrank = 4', '[arms.peft]\nmethod = "peft:lora"')
    text = text.replace("1e-3, 1e-2", "1e-30")
    study(write(tmp_path, world, text), tmp_path / "out")
    runs = tmp_path / "out" / "runs"
    ours, theirs = (
        (runs / f"reviews.600.{arm}.lr1e-30.seed1" / name).read_text()
        for arm in ("uniform", "peft")
        for name in ("rows.csv",)
    )
    assert [line.split(",")[1] for line in ours.splitlines()] == [line.split(",")[1] for line in theirs.splitlines()]
    losses = [[float(line.split(",")[2]) for line in text.splitlines()[1:]] for text in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    parameters = {row["arm"]: row["parameters"] for row in rows(tmp_path / "out")}
    assert parameters["peft"] == parameters["uniform"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds = [0, 1]", "sedes = [0, 1]", "'sedes' is not known; did you mean 'seeds'?"),
        ("seeds = [0, 1]", "seeds = []", "seeds is empty"),
        ("seeds = [0, 1]", "seeds = [0, 0]", "holds a value twice"),
        ('method = "grad_norm"', 'method = "gradnorm"', "did you mean 'grad_norm'?"),
        ("rank = 4", "rank = 0", "rank is 0; expected a whole number, 1 or more"),
        ("max_epochs = 1", "max_epoch = 1", "did you mean 'max_epochs'?"),
        ("max_epochs = 1", "learning_rate = 1e-3", "the study sets learning_rate itself"),
        ("max_epochs = 1", 'max_epochs = "one"', "max_epochs' is 'one'"),
        ("[arms.uniform]", "[arms.'../uniform']", "is no name of a folder"),
        ("measure = ", "baseline = 'unifrom'\nmeasure = ", "did you mean 'uniform'?"),
        ('[arms.grad_norm]\nmethod = "grad_norm"\nrank = 4', "", "has one arm"),
    ],
)
def test_mistakes_in_the_study_file(tmp_path: Path, world: World, old: str, new: str, message: str) -> None:
    with pytest.raises(UserError) as mistake:
        read_study(write(tmp_path, world, **{old: new}))
    assert message in str(mistake.value)


def test_a_budget_that_no_arm_can_spend_is_reported(
    tmp_path: Path, world: World, start: InThisProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    study(write(tmp_path, world, **{"[600]": "[1]"}), tmp_path / "out")
    assert "No comparison" in capsys.readouterr().out


def test_the_pareto_front_keeps_what_nothing_beats() -> None:
    points = [(1.0, 0.5), (2.0, 0.4), (3.0, 0.7), (3.0, 0.6), (4.0, 0.7)]
    assert pareto(points, higher_is_better=True) == [(1.0, 0.5), (3.0, 0.7)]
    assert pareto(points, higher_is_better=False) == [(1.0, 0.5), (2.0, 0.4)]
