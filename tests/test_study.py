"""`tools/study.py`, from the study file to its report."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from peft import AdaLoraConfig, get_peft_model

from actions.run.endings import TERMINATED, ended
from actions.run.in_use import in_use
from heterolora.choosing import history, scores
from heterolora.common.errors import UserError
from heterolora.elements.element import Element
from tests import chromium
from tests.mistakes import refusal
from tests.scoring import scored
from tests.studies import MINIMAL, InThisProcess, measured, rows, study, write
from tests.tiny import tiny_network
from tests.world import ROOT, World, weights
from tools import study as tool
from tools.studies import adalora, execution, peft_run, running
from tools.studies.data import check_data
from tools.studies.figures import pareto
from tools.studies.jobs import Case, Commands, Job, assignment, from_here
from tools.studies.page import markdown, render
from tools.studies.results import Measured, Row, beyond, measuring_rows
from tools.studies.running import JobRecord, check_unfinished, record_of, run_here, run_job
from tools.studies.sentence import answer
from tools.studies.spec import PEFT_METHODS, Arm, Study, read_study
from tools.studies.summary import compare


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
    assert "http" not in page.replace("http-equiv", "")
    text = (folder / "report.md").read_text()
    assert "uniform" in capsys.readouterr().out
    assert "| grad_norm |" in text
    with (next((folder / "runs").glob("*.uniform.*")) / "rows.csv").open(newline="") as file:
        labels = [row["label"] for row in csv.DictReader(file)]
    measuring = [label for index, label in enumerate(labels) if index % 4]
    majority = max(map(measuring.count, measuring)) / len(measuring)
    assert f"| majority class | – | {majority:.4f} | – |" in text
    assert ">majority class</th>" in page
    assert "600 parameters" in text

    # Started again, nothing runs.
    start.commands.clear()
    study(write(tmp_path, world), folder)
    assert start.commands == []
    assert rows(folder) == found

    # What another study ran is not reported as its result. The order of its options does not matter.
    turned = MINIMAL.replace("max_epochs = 1\nbatch_size = 8", "batch_size = 8\nmax_epochs = 1")
    study(write(tmp_path, world, turned), folder, "--report-only")
    for changed in ({"max_epochs = 1": "max_epochs = 2"}, {"rank = 4": "rank = 3"}):
        with pytest.raises(UserError, match="other options than those of the study file; give another --output"):
            study(write(tmp_path, world, **changed), folder)
    assert {command[2] for command in start.commands} == {"imp-test"}  # of rank 3, which are other scores


EARLIER = """
parameters = [2000]
seeds = [0, 1]
learning_rates = [1e-3, 4e-3]
tuning = "grid"
measure = "loss"
resolve = 0.01

[options]
model = "opt_lora"
max_epochs = 1
batch_size = 8
limit_train_batches = 6
limit_val_batches = 6
limit_test_batches = 6
imp_limit_test_batches = 2
logger = "none"

[tasks.toy_nli]
dataset = "toy_nli"

[arms.drawn]
method = "drawn"
rank = 1

[arms.snip]
method = "snip"
rank = 4

[arms.uniform]
method = "uniform"
"""


def test_jobs_of_earlier_versions_are_those_of_today(tmp_path: Path) -> None:
    """A study folder that version 0.1 began is continued. The digests are those that it recorded."""
    (tmp_path / "study.toml").write_text(EARLIER)
    study = read_study(tmp_path / "study.toml")
    digests = [
        Commands(study, tmp_path).scoring(Case("toy_nli", 2000, study.arms[arm], 1e-3, seed)).digest
        for arm, seed in (("drawn", 1), ("uniform", 0), ("snip", 0), ("snip", 1))
    ]
    assert digests == ["2a4d8e4d1afbddfb", "3b56a8a597c17c94", "9f730a72965dee26", "2e2f4f7ca35b6e3a"]


def test_an_arm_whose_budget_shrinks(tmp_path: Path, world: World, start: InThisProcess) -> None:
    """Its runs begin with every place at `rank`, and are measured within the budget."""
    changed = {'method = "grad_norm"\nrank = 4': 'method = "shrink"\nrank = 1', "[1e-3, 1e-2]": "[1e-2]"}
    study(write(tmp_path, world, **{**changed, "[0, 1]": "[0]", "[arms.grad_norm]": "[arms.shrink]"}), tmp_path / "out")
    (command,) = (each for each in start.commands if each[2] == "train-dyrealloc")
    assert command[command.index("--budget-schedule") + 1] == "shrink"
    (run,) = (path.parent for path in (tmp_path / "out" / "runs").glob("*/reallocation_history.toml"))
    past = history.read(run)
    assert all(past.decisions[0].on)
    assert len(past.decisions) > 1
    assert [0 < int(row["parameters"]) <= 600 for row in rows(tmp_path / "out") if row["arm"] == "shrink"] == [True] * 2


def compared(**values: object) -> Study:
    arms = {name: Arm(name, "uniform") for name in ("base", "one", "two", "three")}
    shared = {"parameters": (1,), "seeds": (0,), "learning_rates": (1e-3,), "tuning_seeds": (0,), "tasks": {}}
    return Study(**{**shared, "arms": arms, "baseline": "base", "measure": "accuracy", **values})


@pytest.mark.parametrize(("share", "tuning"), [(0.25, 5), (0.3, 6), (1 / 3, 7), (0.6, 12), (0.75, 15), (0.9, 18)])
def test_the_share_of_the_rows_that_tune(share: float, tuning: int) -> None:
    run = measured("base", 0, [0.0] * 20)
    found = [run.on(compared(tuning_share=share), which) for which in (True, False)]
    assert [len(rows) for rows in found] == [tuning, 20 - tuning]
    assert not {*found[0]} & {*found[1]}
    with pytest.raises(UserError, match="none of the 1 rows of split 'first' is left to measure"):
        measured("base", 0, [0.0]).on(compared(tuning_share=share), tuning=False)


@pytest.mark.parametrize(
    ("named", "counts"),
    [
        ({"measuring_split": "second"}, [20, 8]),
        ({"tuning_split": "second"}, [8, 20]),
        ({"measuring_split": "first"}, [5, 15]),
    ],
)
def test_another_split_tunes_or_measures_with_all_its_rows(named: dict[str, str], counts: list[int]) -> None:
    run = measured("base", 0, [0.0] * 20, [0.0] * 8)
    assert [len(run.on(compared(**named), tuning)) for tuning in (True, False)] == counts


def test_an_arm_on_other_rows_is_not_compared() -> None:
    runs = {name: [measured(name, 0, [0.0] * count)] for name, count in (("base", 20), ("one", 20), ("two", 24))}
    found = compare(compared(), "task", 1, runs, {"three": "it failed"})
    assert [arm.name for arm in found.arms] == ["base", "one"]
    assert found.missing == {"three": "it failed", "two": "it is measured on other rows than base"}


def test_an_arm_with_a_row_that_is_not_finite_is_not_compared() -> None:
    last = {"base": 0.5, "one": 0.6, "two": math.nan}
    runs = {arm: [measured(arm, seed, [0.5] * 7 + [value]) for seed in (0, 1)] for arm, value in last.items()}
    found = compare(compared(measure="loss", seeds=(0, 1)), "task", 600, runs, {})
    assert [arm.name for arm in found.arms] == ["base", "one"]
    assert found.missing == {"two": "the loss of a row is not finite"}


def said(runs: dict[str, list[Measured]], missing: dict[str, str] | None = None, **values: object) -> str:
    """The answer of a study with these runs."""
    planned = compared(seeds=tuple(sorted({run.case.seed for found in runs.values() for run in found})), **values)
    return answer(planned, compare(planned, "task", 1, runs, missing or {}))


def test_more_seeds_are_needed_than_were_not_enough() -> None:
    """The arms together need more seeds than each of them alone, and more if the difference is not 0."""
    seeds = range(10)
    runs = {"base": [measured("base", seed, [0.7] * 40) for seed in seeds]}
    for name in ("one", "two", "three"):
        runs[name] = [measured(name, seed, [0.7045 + 0.008 * (seed - 4.5) / 3] * 40) for seed in seeds]
    sentence = said(runs)
    assert "No difference from base is shown" in sentence
    low, high = map(int, re.search(r": (\d+) to (\d+) seeds are needed, a range because 10 seeds", sentence).groups())
    assert 10 < low < high


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ((1e-3,), ""),
        ((1e-4, 1e-3, 1e-2), ""),
        ((1e-2, 1e-3), "The best learning rate is the lowest one for base, one: a rate beyond it may be better."),
        ((1e-4, 1e-3), "The best learning rate is the highest one for base, one: a rate beyond it may be better."),
    ],
)
def test_a_best_rate_at_the_end_of_the_rates_is_named_first(rates: tuple[float, ...], expected: str) -> None:
    """It can decide the comparison: AdaLoRA looked worse than uniform LoRA until its rates went high enough."""
    runs = {"base": [measured("base", 0, [0.5, 1.0] * 10)], "one": [measured("one", 0, [1.0, 0.5] * 10)]}
    sentence = said(runs, learning_rates=rates)
    assert sentence.startswith(expected)
    assert ("best learning rate" in sentence) == bool(expected)


@pytest.mark.parametrize(
    ("rates", "best", "expected"),
    [
        ((1e-3, 3e-3, 9e-3), 9e-3, 2.7e-2),
        ((9e-3, 1e-3, 3e-3), 1e-3, 3.33e-4),
        ((1e-3, 3e-3, 9e-3), 3e-3, None),
        ((1e-3,), 1e-3, None),
    ],
)
def test_the_rate_beyond_an_end(rates: tuple[float, ...], best: float, expected: float | None) -> None:
    assert beyond(rates, best) == expected


@pytest.mark.slow
def test_an_arm_whose_best_rate_is_an_end_tries_more(tmp_path: Path, world: World, start: InThisProcess) -> None:
    """The loss of so short a run falls with the rate, up to rates that are tried here."""
    changed = {"[1e-3, 1e-2]": "[1e-5, 1e-4]\nextend_rates = 2", 'measure = "accuracy"': 'measure = "loss"'}
    path, folder = write(tmp_path, world, **changed), tmp_path / "out"
    study(path, folder)
    tuned = {float(row["learning_rate"]) for row in rows(folder) if row["arm"] == "uniform" and row["rows"] == "tuning"}
    assert tuned == {1e-5, 1e-4, 1e-3, 1e-2}
    assert {row["learning_rate"] for row in rows(folder) if row["seed"] == "1"} == {"0.01"}
    assert "The best learning rate is the highest one for uniform, grad_norm" in (folder / "report.md").read_text()
    start.commands.clear()
    study(path, folder, "--report-only")
    assert "The best learning rate is the highest one for uniform, grad_norm" in (folder / "report.md").read_text()
    study(path, folder)
    assert start.commands == []


def test_the_arms_without_a_significant_difference_are_not_forgotten() -> None:
    seeds = range(5)
    rows = {"base": 0.5, "one": 0.2, "two": 0.51}
    runs = {
        name: [measured(name, seed, [value + 0.02 * (seed - 1.5) * (name == "two")] * 40) for seed in seeds]
        for name, value in rows.items()
    }
    sentence = said(runs)
    assert sentence.startswith("one is worse than base by 0.3000")
    assert "No difference from base is shown for the other arms, but differences up to 0.0" in sentence
    assert re.search(r"for the other arms: \d+ to \d+ seeds are needed", sentence)


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        (1, "With one seed, which says nothing about other seeds, the study suggests that one is better than base by"),
        (4, "With 4 seeds, the study suggests that one is better than base by 0.3000 "),
        (5, "one beats base by 0.3000 "),
    ],
)
def test_fewer_than_five_seeds_only_suggest(seeds: int, expected: str) -> None:
    values = {"base": [0.5, 0.7] * 20, "one": [0.8, 1.0] * 20}
    sentence = said({name: [measured(name, seed, rows) for seed in range(seeds)] for name, rows in values.items()})
    assert sentence.startswith(expected)
    assert ("beats" in sentence) == (seeds >= 5)


def classified(arm: str, seed: int, predicted: Sequence[int], measure: str = "accuracy") -> Measured:
    """A run on rows whose labels are 0, 0, 1, 0, 0, 1 and so on."""
    labels = [int(index % 3 == 2) for index in range(len(predicted))]
    hits = [float(label == guess) for label, guess in zip(labels, predicted, strict=True)]
    values = hits if measure == "accuracy" else [0.7 - 0.001 * seed] * len(hits)
    return measured(arm, seed, [Row(*row) for row in zip(values, [1.0] * len(labels), labels, predicted, strict=True)])


def test_runs_that_predict_one_class_are_named_first() -> None:
    right = [int(index % 3 == 2) for index in range(60)]
    runs = {
        "base": [classified("base", seed, [*right[:-1], seed % 2]) for seed in range(5)],
        "one": [classified("one", seed, [0] * 60 if seed in (1, 3) else right) for seed in range(5)],
    }
    sentence = said(runs)
    assert sentence.startswith("Runs that predict one class for all rows: one with seed 1, 3.")
    assert "base with seed" not in sentence


def test_the_page_marks_them_and_begins_with_the_answer(tmp_path: Path) -> None:
    """The title says what was compared. The column that answers the question is the first one beside the arms."""
    right = [int(index % 3 == 2) for index in range(60)]
    runs = {
        "base": [classified("base", seed, right) for seed in range(2)],
        "one": [classified("one", seed, [0] * 60 if seed == 1 else right) for seed in range(2)],
    }
    tasks = {"task": {"load": "owner/some-model", "dataset": "sst2"}}
    planned = compared(seeds=(0, 1), tasks=tasks)
    page = render(planned, [compare(planned, "task", 1, runs, {})], execution.Execution(planned, tmp_path))
    assert "some-model · sst2 · 45 measured rows · 1 LoRA parameters</p>" in page
    heads = re.findall(r"<th>(.*?)</th>", page)
    assert heads[:4] == ["arm", "better than base (95%)", "p (Holm)", "accuracy (95%)"]
    marks = re.findall(r'<th scope="row">.*?</span>(\w+)(<br><small>.*?</small>)?</th>', page)
    assert marks == [("base", ""), ("one", "<br><small>predicts one class: seed 1</small>")]


@pytest.mark.slow
@pytest.mark.skipif(chromium.PROGRAM is None, reason="Chromium is not installed")
def test_a_published_study_in_a_browser(tmp_path: Path) -> None:
    """At both widths, in light and dark, the answer is in sight and nothing is wider than the page."""
    with tarfile.open(ROOT / "docs" / "measured" / "minilm_lead.tar.xz") as archive:
        archive.extractall(tmp_path / "lead", filter="data")
    study(tmp_path / "lead" / "study.toml", tmp_path / "lead", "--report-only", "--overwrite")
    answer = "document.querySelectorAll('table.compare thead th')[1].getBoundingClientRect().right"
    with chromium.Page() as page:
        for width, dark in ((400, False), (400, True), (1280, False), (1280, True)):
            page.open(tmp_path / "lead" / "report.html", width, dark)
            assert page.errors == []
            assert page.evaluate("document.documentElement.scrollWidth") == width
            assert page.evaluate(answer) < width
            assert "better than drawn" in page.evaluate("document.body.innerText")
            assert page.evaluate("getComputedStyle(document.querySelector('tbody th')).position") == "sticky"


@pytest.mark.parametrize("measure", ["accuracy", "loss"])
def test_arms_at_the_level_of_a_constant_prediction_are_named(measure: str) -> None:
    found = [classified(arm, seed, [0] * 57 + [1] * 3, measure) for arm in ("base", "one") for seed in range(3)]
    runs = {"base": found[:3], "one": found[3:]}
    labels = [row.label for row in measuring_rows(compared(), found[0])]
    share = sum(labels) / len(labels)
    expected = 1 - share if measure == "accuracy" else -(share * math.log(share) + (1 - share) * math.log(1 - share))
    sentence = said(runs, measure=measure)
    assert f"Not shown to be better than a constant prediction ({measure} {expected:.4f}): base, one." in sentence


def test_arms_that_are_equal_to_the_last_digit_are_named_first() -> None:
    runs = {name: [measured(name, seed, [0.5, 1.0] * 10) for seed in range(5)] for name in ("base", "one")}
    assert said(runs).startswith("All arms have the same accuracy on every row, to the last digit.")


def test_a_learning_rate_without_a_result_is_named(tmp_path: Path, world: World, start: InThisProcess) -> None:
    """The arm is compared at the best of its other rates."""
    path, folder = write(tmp_path, world), tmp_path / "out"
    failing = ("reviews.600.grad_norm.lr0.01.seed0",)

    class Fails(InThisProcess):
        def __call__(self, arguments: Sequence[str], log: Path) -> int:
            log.touch()
            return 1 if any(name in arguments for name in failing) else super().__call__(arguments, log)

    made = execution.Execution(read_study(path), folder, start=Fails())
    (found,) = made.comparisons(run_jobs=True, track=lambda items, total, what: items)
    assert found.untuned == {"grad_norm": {0.01: "no output"}}
    sentence = answer(made.study, found)
    assert sentence.startswith("Without a result, because a run diverged or failed: grad_norm at 0.01.")
    assert "grad_norm at 0.01 has no result: no output" in markdown(made.study, [found], made)
    more = execution.Execution(replace(made.study, seeds=(0, 1, 2)), folder, start=Fails())
    (found,) = more.comparisons(run_jobs=False, track=lambda items, total, what: items)
    assert answer(more.study, found).startswith("Not finished: uniform, grad_norm")


def test_a_run_of_other_options_or_of_a_later_point_starts_again(tmp_path: Path) -> None:
    """An interrupted run would go on with its old options, and a part would be measured too late."""
    job = Job("run", (), (), tmp_path / "run", digest="a")
    last = job.folder / "checkpoints" / "last.ckpt"
    continued = []

    def start(arguments: Sequence[str], log: Path) -> int:
        log.touch()
        continued.append("--resume-training" in arguments)
        last.parent.mkdir(parents=True, exist_ok=True)
        last.touch()
        return 1

    whole, half = job, replace(job, name="run.to0.5", share=0.5)
    for each in (half, whole, whole, replace(whole, digest="b"), half, replace(half, digest="b")):
        run_job(each, tmp_path / "jobs", start)
    assert continued == [False, True, True, False, False, False]
    assert not (tmp_path / "jobs" / "run.json").exists(), "of a run that is gone"


def test_the_list_of_places_does_not_depend_on_an_arms_own_options(tmp_path: Path, world: World) -> None:
    """Arms without a heuristic share it, and one that is added must not change it."""
    commands = Commands(read_study(write(tmp_path, world)), tmp_path)
    plain, own = Arm("u", "uniform"), Arm("d", "dynamic", options={"imp_limit_test_batches": 5})
    jobs = [commands.scoring(Case("reviews", 600, arm, 1e-3, 0)) for arm in (plain, own)]
    assert jobs[0] == jobs[1]


def test_a_path_means_the_same_from_every_folder(tmp_path: Path, world: World, monkeypatch) -> None:
    path = write(tmp_path, world)
    path.write_text(path.read_text().replace(str(world.sst2), world.sst2.name))
    monkeypatch.chdir(world.sst2.parent)
    options = Commands(read_study(path), tmp_path).scoring(Case("reviews", 600, Arm("u", "uniform"), 1e-3, 0)).options
    assert options[options.index("--dataset-saved-path") + 1] == str(world.sst2)
    assert options[options.index("--dataset") + 1] == "sst2", "a name, although a folder has it too"
    path.write_text(path.read_text().replace(str(world.opt), world.opt.name))
    monkeypatch.chdir(world.opt.parent)
    case = Case("reviews", 600, Arm("p", "peft:lora"), 1e-3, 0)
    options = Commands(read_study(path), tmp_path).training(case).options
    assert [options[options.index(flag) + 1] for flag in ("--load", "--model")] == [str(world.opt)] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--slurm", "mem_gb=4"), "--slurm has no effect with --executor here; add --executor slurm"),
        (("--executor", "local", "--slurm", "timeout_min=soon"), "submitit refuses --executor local"),
        (("--executor", "local", "--slurm", "walltime=5"), "submitit refuses --executor local"),
    ],
)
def test_parameters_that_submitit_does_not_take(tmp_path: Path, world: World, arguments: tuple, message: str) -> None:
    pytest.importorskip("submitit")
    with pytest.raises(UserError, match=message):
        study(write(tmp_path, world), tmp_path / "out", *arguments)


def test_all_seeds_hold_out_the_same_rows_of_own_data(tmp_path: Path, world: World) -> None:
    """By default --validation-seed is --seed."""
    text = MINIMAL.replace('dataset = "sst2"', 'dataset = "{data}/train.jsonl"').replace(
        'dataset_saved_path = "{data}"', ""
    )
    commands = Commands(read_study(write(tmp_path, world, text)), tmp_path)
    for seed in (0, 1):
        options = commands.scoring(Case("reviews", 600, Arm("g", "grad_norm"), 1e-3, seed)).options
        assert options[options.index("--validation-seed") + 1] == "0"
        assert options[options.index("--seed") + 1] == str(seed)


def test_a_damaged_record(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "job.json").write_text('{"name": "job"}')
    with pytest.raises(UserError, match=r"job\.json' is damaged"):
        record_of(Job("job", (), (), tmp_path), tmp_path)


def test_a_study_that_is_terminated_ends_its_jobs(tmp_path: Path) -> None:
    """They would go on, and the study would wait for them."""
    jobs = [Job(f"job{i}", ("-c", "import time; time.sleep(100)"), (), tmp_path / f"run{i}") for i in range(2)]
    threading.Timer(2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    start = time.perf_counter()
    assert ended(lambda: [*run_here(jobs, tmp_path, 1)]) == TERMINATED
    assert time.perf_counter() - start < 60
    assert json.loads((tmp_path / "job0.json").read_text())["code"] == -signal.SIGTERM
    assert not (tmp_path / "job1.json").exists()


def test_a_study_or_a_run_that_another_process_has_is_left_alone(
    tmp_path: Path, world: World, start: InThisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock of a file is that of its open description, so this process stands for another one."""
    path, folder = write(tmp_path, world), tmp_path / "out"
    folder.mkdir()
    with in_use(folder), pytest.raises(UserError, match=r"out is in use by process \d+"):
        study(path, folder)
    assert start.commands == []
    job = Job("job", (), (), tmp_path / "run")
    job.folder.mkdir()
    monkeypatch.setattr(running, "_ENDING", 0.1)
    with in_use(job.folder), pytest.raises(UserError, match="run is in use by process"):
        run_job(job, tmp_path, start)
    assert job.folder.is_dir()


@pytest.mark.slow
def test_jobs_end_when_their_study_is_killed(tmp_path: Path) -> None:
    """Nobody would read their results, and the next start of the study would find them in use."""
    end = "import os, time; from actions.run.endings import end_with_parent; end_with_parent()"
    job = f"{end}; print(os.getpid(), flush=True); time.sleep(100)"
    log = tmp_path / "log"
    start = f"start_process(['-c', {job!r}], Path({str(log)!r}))"
    parent = subprocess.Popen(
        [sys.executable, "-c", f"from tools.studies.running import Path, start_process; {start}"], cwd=ROOT
    )
    _until(lambda: log.is_file() and log.read_text().strip())
    parent.kill()
    child = Path("/proc") / log.read_text().strip() / "stat"
    _until(lambda: not child.is_file() or child.read_text().split()[2] == "Z")


def _until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_finished_run_is_not_trained_again_for_a_part_of_it(tmp_path: Path) -> None:
    job = Job("run", (), (), tmp_path / "run", digest="a")
    half = replace(job, name="run.to0.5", share=0.5)

    def start(arguments: Sequence[str], log: Path) -> int:
        job.folder.mkdir()
        (job.folder / job.result).touch()
        return 0

    check_unfinished(half, tmp_path / "jobs")
    run_job(job, tmp_path / "jobs", start)
    check_unfinished(job, tmp_path / "jobs")
    with pytest.raises(UserError, match="run is finished, and has no result after 50% of it"):
        check_unfinished(half, tmp_path / "jobs")


@pytest.mark.parametrize("saved", [True, False], ids=["continued", "started again"])
def test_the_time_of_a_job_counts_the_processes_whose_work_it_keeps(tmp_path: Path, saved: bool) -> None:
    job = Job("job", (), (), tmp_path / "run")
    interrupted = JobRecord("job", -signal.SIGTERM, 1000.0)
    (tmp_path / "job.json").write_text(json.dumps(asdict(interrupted)))
    if saved:
        (job.folder / "checkpoints").mkdir(parents=True)
        (job.folder / "checkpoints" / "last.ckpt").touch()

    def start(arguments: Sequence[str], log: Path) -> int:
        assert ("--resume-training" in arguments) == saved
        return 0

    assert (run_job(job, tmp_path, start).seconds > 1000) == saved


def test_the_error_of_a_job_is_that_of_its_last_start(tmp_path: Path) -> None:
    def start(arguments: Sequence[str], log: Path) -> int:
        with log.open("a") as file:
            file.write(next(said))
        return 1

    said = iter(("error: the disk is full\n", "Killed\n"))
    job = Job("job", (), (), tmp_path / "run")
    assert run_job(job, tmp_path, start).error == "error: the disk is full"
    assert run_job(job, tmp_path, start).error == "Killed"


def test_paths_of_a_study_are_those_of_the_folder_where_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The jobs run in the folder of the program."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("base", "cache"):
        (tmp_path / name).mkdir()
    assert from_here("cache_folder", "cache") == str(tmp_path / "cache")
    assert from_here("load", "~/base") == from_here("load", "base") == str(tmp_path / "base")
    assert from_here("load", "facebook/opt-350m") == "facebook/opt-350m"
    assert from_here("dataset", "sst2") == "sst2"


def test_the_signal_of_submitit_tells_a_run_to_end() -> None:
    own = "import os, signal, time; from actions.run.endings import end_with_parent; end_with_parent();"
    code = f"{own} os.kill(os.getpid(), signal.SIGUSR2); time.sleep(60)"
    ended_by = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, running.ENDS_WITH_PARENT: "1"})
    assert ended_by.returncode == -signal.SIGTERM


def test_what_a_failed_job_of_submitit_says() -> None:
    trace = "Traceback (most recent call last):\n  File x\nUserError: the folder of the run is in use"
    dashes = "-" * 22
    failure = RuntimeError(f"Job (task=0) failed during processing with trace:\n{dashes}\n{trace}\n\n{dashes}\nYou can")
    assert running._reason(failure) == "UserError: the folder of the run is in use"
    assert running._reason(TimeoutError()) == "TimeoutError"


def test_numbers_for_slurm_are_names_unless_they_stay_the_same() -> None:
    pairs = {"timeout_min": "60", "mem_gb": "1.5", "slurm_account": "0123", "slurm_partition": "1e3"}
    found = tool._pairs([f"{key}={value}" for key, value in pairs.items()])
    assert found == {"timeout_min": 60, "mem_gb": 1.5, "slurm_account": "0123", "slurm_partition": "1e3"}


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
    with pytest.raises(SystemExit, match="1"):
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
def test_halving_stops_the_worse_rates_early(tmp_path: Path, world: World, start: InThisProcess) -> None:
    """The better half of the rates continues, and ends with the result of a run that was never stopped."""
    text = peft_arms("adalora").replace("max_epochs = 1", 'max_epochs = 2\nlr_scheduler = "linear"')
    path = write(tmp_path, world, text.replace("[options]", 'tuning = "halving"\n[options]'))
    study(path, tmp_path / "out")
    training = [command for command in start.commands if "imp-test" not in command]
    assert [command[-2:] for command in training[:4]] == [["--stop-after", "0.5"]] * 4
    assert len(training) == 6
    assert all("--resume-training" in command and "--stop-after" not in command for command in training[4:])
    found = [row for row in rows(tmp_path / "out") if row["rows"] == "measuring"]
    assert [row["share"] for row in found] == ["0.5"] * 4 + ["1.0"] * 2
    best = next(row["learning_rate"] for row in found if row["share"] == "1.0" and row["arm"] == "adalora")
    report = (tmp_path / "out" / "report.md").read_text()
    assert f"| {float(best):g} |" in next(line for line in report.splitlines() if line.startswith("| adalora | 50.0%"))
    assert "2 runs and 2 that were stopped early" in report

    name = f"reviews.3000.adalora.lr{float(best):g}.seed0"
    whole = next(command for command in training if "--stop-after" in command and name in command)
    whole = whole[: whole.index("--stop-after")]
    whole[whole.index(name)] = "whole"
    assert start(whole, tmp_path / "whole.log") == 0
    runs = tmp_path / "out" / "runs"
    for file in ("rows.csv", "lora.toml"):
        assert (runs / name / file).read_text() == (runs / "whole" / file).read_text()

    start.commands.clear()
    study(path, tmp_path / "out")
    assert start.commands == []
    assert (tmp_path / "out" / "report.md").read_text() == report


@pytest.mark.slow
def test_submitit_runs_the_same_study(tmp_path: Path, world: World) -> None:
    """The local executor of submitit starts real processes, as a job array does."""
    one_rate = MINIMAL.replace("seeds = [0, 1]", "seeds = [0]").replace("[1e-3, 1e-2]", "[1e-2]")
    study(write(tmp_path, world, one_rate), tmp_path / "out", "--executor", "local")
    found = rows(tmp_path / "out")
    assert {row["arm"] for row in found} == {"uniform", "grad_norm"}
    assert all(float(row["seconds"]) > 0 for row in found)


def peft_arms(*methods: str) -> str:
    """The study with one seed and PEFT's methods beside `uniform`."""
    arms = "".join(f'[arms.{method}]\nmethod = "peft:{method}"\n' for method in methods)
    return MINIMAL[: MINIMAL.index("[arms.grad_norm]")].replace("[0, 1]", "[0]").replace("[600]", "[3000]") + arms


@pytest.mark.slow
def test_pefts_own_methods_run_in_the_same_loop(tmp_path: Path, world: World, start: InThisProcess) -> None:
    study(write(tmp_path, world, peft_arms(*PEFT_METHODS).replace("1e-3, 1e-2", "1e-2")), tmp_path / "out")
    found = {row["arm"]: int(row["parameters"]) for row in rows(tmp_path / "out")}
    assert set(found) == {"uniform", *PEFT_METHODS}
    assert all(0 < parameters <= 3000 for parameters in found.values())

    # AdaLoRA spends the budget with its final ranks, and the weights that are measured have no others.
    runs = tmp_path / "out" / "runs"
    places = [item.element for item in scores.read(next(runs.glob("*constant*")) / "scores.toml").scored]
    values = weights(runs / "reviews.3000.adalora.lr0.01.seed0" / "checkpoints" / "last.ckpt")
    left = {  # singular values that are not masked
        place: int(value.count_nonzero())
        for place in places
        for name, value in values.items()
        if f"{place.module}.lora_E." in name
    }
    costs = {place: place.in_features + place.out_features for place in places}
    assert sum(costs[place] * rank for place, rank in left.items()) == found["adalora"]
    assert 3000 - found["adalora"] < max(costs.values())  # not one more rank fits, in AdaLoRA's order
    assert len(set(left.values())) > 1


def test_adalora_is_regularised_as_by_peft() -> None:
    """PEFT adds the regulariser to a loss that the network computes."""
    network = tiny_network("opt", "classification")
    config = AdaLoraConfig(target_modules=["q_proj", "fc1"], init_r=3, target_r=2, total_step=10, task_type="SEQ_CLS")
    adapted = get_peft_model(network, config)
    tokens = torch.arange(4, 12).reshape(2, 4)
    output = adapted(input_ids=tokens, labels=torch.tensor([0, 1]))
    own = torch.nn.functional.cross_entropy(output.logits, torch.tensor([0, 1]))
    expected = config.orth_reg_weight * adalora.orthogonality(adapted.base_model.model)
    assert float(output.loss - own) == pytest.approx(float(expected), rel=1e-5)


STUDIES = sorted((ROOT / "configs" / "studies").glob("*.toml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_documented_studies_can_be_read(path: Path) -> None:
    """Each one names its own command, and the documentation has its results."""
    command = f"python tools/study.py configs/studies/{path.name}"
    assert len(read_study(path).arms) > 1
    assert f"{command} --output studies/{path.stem}" in path.read_text()
    pages = (ROOT / "docs" / "does-it-help.md", ROOT / "docs" / "measured" / "earlier.md")
    assert any(command in page.read_text() for page in pages)


def test_a_budget_below_rank_1_gives_each_seed_its_own_places() -> None:
    """A comparison with one set of places would depend on its luck. PEFT's arms of a seed have those of `uniform`."""
    places = [scored(layer, name, 1.0, rank=4) for layer in range(4) for name in ("q_proj", "v_proj")]
    elements = [item.element for item in places]
    budget = 3 * (elements[0].in_features + elements[0].out_features)  # rank 1 in 3 of 8 places
    on = {}
    for seed in range(6):
        ranks = assignment(Case("task", budget, Arm("even", "uniform"), 1e-3, seed), places, budget).ranks
        on[seed] = {key for key, rank in ranks.items() if rank}
        assert len(on[seed]) == 3
        assert {element.key for element in peft_run.uniform_ranks(elements, budget, seed)} == on[seed]
    assert len({frozenset(each) for each in on.values()}) > 1


@pytest.mark.parametrize(("budget", "starts"), [(256, [[2] * 4, [1] * 4]), (128, [[1] * 4, [1] * 2]), (31, [])])
def test_eva_stays_within_the_budget(budget: int, starts: list[list[int]]) -> None:
    """Where EVA prefers wide places, its ranks cost more. It starts again from a lower rank, or from fewer places."""
    places = [scored(layer, "q_proj", 1.0).element for layer in range(4)]  # a rank costs 16 + 16
    found = []

    def redistribute(start: Sequence[Element]) -> list[Element]:  # every rank goes to a wider place
        found.append([element.rank for element in start])
        return [replace(element, out_features=40) for element in start]

    if not starts:
        with pytest.raises(UserError, match="does not pay for the ranks that EVA gives"):
            peft_run.affordable(places, budget, 0, redistribute)
    else:
        on = peft_run.affordable(places, budget, 0, redistribute)
        assert sum(element.parameters for element in on) <= budget
    assert found == starts


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


@pytest.mark.slow
def test_an_arm_may_have_elements_in_some_blocks_only(tmp_path: Path, world: World, start: InThisProcess) -> None:
    """It spends what the others spend. A block that the model does not have is named, with those that it has."""
    text = MINIMAL + '[arms.upper]\nmethod = "uniform"\nblocks = [1]\n'
    study(write(tmp_path, world, text + '[arms.wrong]\nmethod = "uniform"\nblocks = [1, 9]\n'), tmp_path / "out")
    upper = [row for row in rows(tmp_path / "out") if row["arm"] == "upper"]
    assert all(0 <= 600 - int(row["parameters"]) < 64 for row in upper)  # not one more rank fits
    chosen = [*(tmp_path / "out" / "configs").glob("reviews.600.upper.*")]
    assert chosen
    for path in chosen:
        assert "[model_layer_1." in path.read_text()
        assert "[model_layer_0." not in path.read_text()
    assert "arm wrong: there is no block 9; valid: 0 to 1" in (tmp_path / "out" / "report.md").read_text()


def test_an_arm_with_a_base_of_its_own_has_its_own_elements(tmp_path: Path) -> None:
    arms = {
        "base": Arm("base", "uniform"),
        "other": Arm("other", "uniform", options={"load": "another"}),
        "longer": Arm("longer", "uniform", options={"max_epochs": 2}),
    }
    of_study = Study((600,), (0,), (1e-3,), (0,), {"reviews": {"load": "one"}}, arms, "base", "loss")
    commands = Commands(of_study, tmp_path)
    jobs = {name: commands.scoring(Case("reviews", 600, arm, 1e-3, 0)) for name, arm in arms.items()}
    assert jobs["other"].name != jobs["base"].name == jobs["longer"].name


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds = [0, 1]", "sedes = [0, 1]", "'sedes' is not known; did you mean 'seeds'?"),
        ("seeds = [0, 1]", "seeds = []", "seeds is empty"),
        ("seeds = [0, 1]", "seeds = [0]\ntuning = 'half'", 'tuning is \'half\'; expected "grid" or "halving"'),
        ("seeds = ", 'tuning = "halving"\nextend_rates = 1\nseeds = ', "extend_rates has no effect with successive"),
        ("[1e-3, 1e-2]", "[1e-3]\nextend_rates = 1", "extend_rates needs two learning rates"),
        ("seeds = [0, 1]", "seeds = [0, 0]", "holds a value twice"),
        ('method = "grad_norm"', 'method = "gradnorm"', "did you mean 'grad_norm'?"),
        ('method = "grad_norm"', 'method = "peft:lora"', "rank has no effect on peft:lora"),
        ('method = "grad_norm"', 'method = "uniform"', "rank has no effect on uniform, which spends the budget as"),
        ('method = "grad_norm"', "method = 'drawn'\npolicy = 'greedy'", "policy has no effect on drawn"),
        ("seeds = [0, 1]", "seeds = [5_000_000_000]", "seeds is 5000000000; expected a whole number"),
        (
            "seeds = [0, 1]",
            "seeds = [0]\ntuning_share = 0.0004",
            "tuning_share is 0.0004; expected a number from 0.001",
        ),
        ("rank = 4", "rank = 0", "rank is 0; expected a whole number, 1 or more"),
        ("rank = 4", "blocks = ['upper']", "blocks is 'upper'; expected a whole number, 0 or more"),
        ("rank = 4", "blocks = []", "blocks is []; expected a list of numbers of blocks"),
        ("max_epochs = 1", "max_epoch = 1", "did you mean 'max_epochs'?"),
        ("max_epochs = 1", "learning_rate = 1e-3", "the study sets learning_rate itself"),
        ("max_epochs = 1", "target = 'mlp'", "the study sets target itself"),
        ('"opt_lora"', '"opt_lora_ags"', "the study has shortcuts, which its budgets do not count"),
        ('"opt_lora"', '"facebook/opt-125m"', 'the study has a model without LoRA; give model = "lora"'),
        ("max_epochs = 1", "measured = 'best'", "the study sets measured itself"),
        ("max_epochs = 1", 'max_epochs = "one"', "max_epochs' is 'one'"),
        ("[arms.uniform]", "[arms.'../uniform']", "is no name of a folder"),
        (
            "rank = 4",
            "options = { limit_val_batches = 2 }",
            "all arms are measured on the same rows; give it in [options]",
        ),
        (
            'method = "grad_norm"\nrank = 4',
            "method = 'peft:lora'\noptions = { lora_init = 'gradient' }",
            "have the option lora_init, which does not fit PEFT's layers",
        ),
        ('"sst2"', '"wikitext2"', "task reviews has no labels, and measure is accuracy"),
        ('"sst2"', '"stsb"', "task reviews has no labels, and measure is accuracy"),
        ("rank = 4", "rank = 4\nshare = 0.5", 'share has no effect without question = "smallest"'),
        ("measure = ", "baseline = 'unifrom'\nmeasure = ", "did you mean 'uniform'?"),
        ('[arms.grad_norm]\nmethod = "grad_norm"\nrank = 4', "", "has one arm"),
    ],
)
def test_mistakes_in_the_study_file(tmp_path: Path, world: World, old: str, new: str, message: str) -> None:
    assert message in refusal(read_study, write(tmp_path, world, **{old: new}))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("max_epochs = 1", 'max_epochs = 1\nmetric = "acuracy"', "task reviews, arm uniform: --metric 'acuracy'"),
        ("seeds = ", 'tuning_split = "valid"\nseeds = ', "tuning_split of task reviews"),
    ],
)
def test_a_mistake_that_every_run_would_meet_is_found_first(
    tmp_path: Path, world: World, start: InThisProcess, old: str, new: str, message: str
) -> None:
    assert message in refusal(study, write(tmp_path, world, **{old: new}), tmp_path / "out")
    assert not start.commands


@pytest.mark.parametrize("home", [False, True])
def test_a_study_that_has_other_data_than_before_is_refused(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch, home: bool
) -> None:
    data = tmp_path / "reviews.csv"
    data.write_text("text,label\n" + "good,yes\nbad,no\n" * 10)
    monkeypatch.setenv("HOME", str(tmp_path))
    named = "~/reviews.csv" if home else data
    path = write(tmp_path, world, **{'dataset = "sst2"': f'dataset = "{named}"', 'dataset_saved_path = "{data}"': ""})
    planned, folder = read_study(path), tmp_path / "out"
    for _ in range(2):
        check_data(planned, folder)
    data.write_text("text,label\n" + "good,yes\npoor,no\n" * 10)
    with pytest.raises(UserError, match="the data of task reviews have changed since the study began"):
        check_data(planned, folder)


def test_there_is_nothing_to_report(tmp_path: Path, world: World) -> None:
    with pytest.raises(UserError, match="holds no study"):
        study(write(tmp_path, world), tmp_path / "typo", "--report-only")
    assert not (tmp_path / "typo").exists()


def test_a_budget_that_no_arm_can_spend_is_reported(
    tmp_path: Path, world: World, start: InThisProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    study(write(tmp_path, world, **{"[600]": "[1]"}), tmp_path / "out")
    assert "No comparison" in capsys.readouterr().out


def test_the_pareto_front_keeps_what_nothing_beats() -> None:
    points = [(1.0, 0.5), (2.0, 0.4), (3.0, 0.7), (3.0, 0.6), (4.0, 0.7)]
    assert pareto(points, higher_is_better=True) == [(1.0, 0.5), (3.0, 0.7)]
    assert pareto(points, higher_is_better=False) == [(1.0, 0.5), (2.0, 0.4)]
