"""A task is a row and a file, and another task from the same parts shares the network and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import transformers

from actions.command.parse import parse_command
from actions.command.request import Request
from actions.request.elements import request_of
from actions.run.run_folder import open_run
from actions.training.experiment import build
from actions.training.learning_rate import with_best_rate
from actions.training.scoring import scoring_batches
from dataset import registry
from heterolora.elements.task import CLASSIFYING, GENERATING, TASKS
from model import metrics
from model.task import class_of
from model.task.multiple_choice import MultipleChoice
from options.optimization import AUTO
from tests.world import World, command, run

ENTRIES = {"classification": "toy_nli", "causal_language_modeling": "wikitext2", "summarization": "xsum"}


@pytest.fixture
def request_of_auto(world: World, tmp_path: Path) -> Request:
    options = ("--project-dir", tmp_path, "--max-epochs", 1, "--learning-rate", AUTO)
    return request_of(parse_command(command(*world.training(*options))))


@pytest.mark.parametrize("task", TASKS)
def test_each_row_has_a_file(task: str) -> None:
    spec = registry.get(ENTRIES[task])
    assert spec.task == task
    assert class_of(spec).__module__ == f"model.task.{task}"
    assert hasattr(transformers, TASKS[task].network)
    assert set(metrics.build(TASKS[task].metrics[:1], num_labels=2)) == {TASKS[task].metrics[0]}
    assert (spec.classifies, spec.generates) == (task in CLASSIFYING, task in GENERATING)


def test_questions_have_a_class_of_their_own() -> None:
    assert class_of(registry.get("arc_easy")) is MultipleChoice


def test_a_task_made_again_shares_the_network_alone(request_of_auto: Request) -> None:
    task = build(request_of_auto).task
    task.keeps_rows = True
    other = task.again(optimization=replace(task.optimization, optimizer="sgd"))
    assert type(other) is type(task)
    assert other.network is task.network
    assert other.trained == task.trained
    assert other.figures is not task.figures
    assert not other.keeps_rows
    assert (task.optimization.optimizer, other.optimization.optimizer) == ("adamw", "sgd")


def test_balanced_classes_have_the_same_weight_together(world: World, tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("text,label\n" + "good film,a\n" * 12 + "bad film,b\n" * 4)
    data = ("--dataset", path, "--validation-share", 0.25, "--project-dir", tmp_path)
    words = [
        "train",
        "--model",
        "opt_lora",
        "--load",
        world.opt,
        *data,
        "--class-weights",
        "balanced",
        "--batch-size",
        16,
    ]
    experiment = build(request_of(parse_command(command(*words))))
    labels = experiment.data.splits.train["label"][:]
    rows = [labels.count(0), labels.count(1)]
    assert min(rows) > 0
    assert experiment.task.parts.class_weights == pytest.approx([len(labels) / 2 / count for count in rows])
    task = experiment.task.eval()
    (batch,) = scoring_batches(experiment.data, 1, 0, 1)
    plain, weighted = task.loss(batch), task.training_loss(batch)
    each = plain.each * batch["weight"]
    of_class = [each[batch["labels"] == label].sum() for label in (0, 1)]
    expected = sum(len(labels) / 2 * loss / count for loss, count in zip(of_class, rows, strict=True))
    assert float(weighted.total) == pytest.approx(float(expected), rel=1e-5)
    assert float(weighted.count) == float(plain.count)


@pytest.mark.parametrize(("model", "said"), [("opt_lora", False), ("plain", True)])
def test_a_run_says_that_it_trains_all_weights(capsys, world: World, tmp_path: Path, model: str, said: bool) -> None:
    name = ("--model", world.opt) if model == "plain" else ("--model", model, "--load", world.opt)
    data = ("--dataset", "sst2", "--dataset-saved-path", world.sst2, "--max-steps", 1, "--project-dir", tmp_path)
    assert run("train", *name, *data) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert (first.startswith("full fine-tuning of ") and first.endswith(" weights (for LoRA: --model lora)")) == said


def test_the_search_of_a_rate_leaves_the_experiment_as_it_is(request_of_auto: Request) -> None:
    with open_run(request_of_auto) as opened:
        experiment = build(request_of_auto)
        found = with_best_rate(experiment, opened.folder)
    assert isinstance(found.task.optimization.learning_rate, float)
    assert found.task.record.options["learning_rate"] == found.task.optimization.learning_rate
    assert experiment.options.optimization.learning_rate == AUTO
    assert experiment.task.optimization.learning_rate == AUTO
    assert experiment.task.record.options["learning_rate"] == AUTO
