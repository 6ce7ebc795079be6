"""An accumulation window is one batch: its gradient is compared to plain autograd, and its run to that of one batch."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, distributed
from torch.nn import functional as F

from actions.command.parse import parse_command
from actions.request.elements import request_of
from actions.training.experiment import build
from heterolora.choosing import history
from heterolora.common.errors import UserError
from heterolora.saliency.problem import Loss
from main import main
from model.task.fine_tuning import FineTuning
from model.task.window import Window
from tests.quick import some_slow
from tests.together import together
from tests.trainer import quiet_trainer
from tests.world import World, command, instruction_folder, run, summary_folder, weights, write_lora

ROWS = 22  # of the instructions: windows of 8 rows, and a last one of 6


@pytest.fixture(scope="module")
def tasks(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[object, ...]]:
    """Task -> the options of its data."""
    folder = tmp_path_factory.mktemp("data")
    lengths = ("--max-token-len", 60, "--max-target-len", 4)
    return {
        "classification": ("sst2", "--dataset-saved-path", world.sst2),
        "instructions": ("alpaca", "--dataset-saved-path", instruction_folder(folder / "alpaca", ROWS), *lengths),
        "summarization": ("xsum", "--dataset-saved-path", summary_folder(folder / "xsum"), *lengths),
    }


@pytest.fixture(scope="module")
def steady(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lora(tmp_path_factory.mktemp("configs") / "lora.toml", "q_proj", "v_proj", "w1")


def training(world: World, lora: Path | None, data: tuple[object, ...], *more: object) -> tuple[object, ...]:
    """A command that trains an adapted model, or a plain one if `lora` is None."""
    model = (world.opt,) if lora is None else ("opt_lora",)
    base = () if lora is None else ("--load", world.opt, "--lora-config", lora)
    options = ("--pretrained", "--optimizer", "sgd", "--learning-rate", 0.05, "--max-epochs", 2)
    return ("train", *model, *data, *base, *options, *more)


class ByHand(pl.Callback):
    """At each step compares the gradients to those of all rows of the window in one loss."""

    def __init__(self) -> None:
        self.window: list[Mapping[str, Any]] = []
        self.sizes: list[int] = []
        self.errors: list[float] = []
        self.losses: list[tuple[float, float]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: FineTuning, batch: Any, batch_idx: int) -> None:
        self.window.append(batch)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: FineTuning, optimizer: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        loss = mean_loss(pl_module.network, self.window)
        expected = torch.cat([each.flatten() for each in torch.autograd.grad(loss, parameters)])
        found = torch.cat([parameter.grad.flatten() for parameter in parameters])
        self.errors.append(float((found - expected).norm() / expected.norm()))
        self.losses.append((float(pl_module.global_loss), float(loss.detach())))
        self.sizes.append(len(self.window))
        self.window = []


def mean_loss(network: torch.nn.Module, batches: list[Mapping[str, Any]]) -> Tensor:
    logits, labels = [], []
    for batch in batches:
        of_rows = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        causal = batch["labels"].ndim == 2
        logits.append(of_rows[:, :-1].flatten(0, 1) if causal else of_rows)
        labels.append(batch["labels"][:, 1:].flatten() if causal else batch["labels"])
    return F.cross_entropy(torch.cat(logits).float(), torch.cat(labels), ignore_index=-100)


def compared(arguments: tuple[object, ...], **more: Any) -> ByHand:
    request = request_of(parse_command(command(*arguments)))
    experiment, by_hand = build(request), ByHand()
    length = {"max_epochs": 1, "limit_val_batches": 1.0, **more}
    window = {"accumulate_grad_batches": request.options.loop.accumulate_grad_batches, "gradient_clip_val": 0.01}
    quiet_trainer([by_hand], devices=1, **window, **length).fit(experiment.task, datamodule=experiment.data)
    return by_hand


@pytest.mark.parametrize("adapted", [True, False], ids=["adapted", "plain"])
@pytest.mark.parametrize("task", ["classification", "instructions", "summarization"])
def test_the_gradient_of_a_window_is_that_of_its_rows(world, steady, tasks, task, adapted) -> None:
    arguments = training(world, steady if adapted else None, tasks[task], "--batch-size", 2)
    found = compared((*arguments, "--accumulate-grad-batches", 4))
    assert found.sizes[0] == 4
    assert 1 <= found.sizes[-1] < 4 or task == "summarization"  # the last, partial window of the epoch
    assert max(found.errors) < 1e-6
    for logged, expected in found.losses:
        assert logged == pytest.approx(expected, rel=1e-6)


def test_a_window_without_targets_moves_nothing() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    window = Window()
    window.start()
    for _ in range(2):
        window.add(Loss((0 * weight).sum(), torch.tensor(0))).backward()
    assert window.finish(optimizer) == 0
    optimizer.step()
    assert torch.equal(weight.detach(), torch.ones(3))


@pytest.mark.parametrize("batches", [((3, 1),), ((3, 1), (5, 2))], ids=["one row", "three rows"])
@pytest.mark.parametrize("divided_by", [{}, {"divided_by": 4}], ids=["", "divided"])
def test_the_sums_of_a_window(batches: tuple[tuple[int, int], ...], divided_by: dict[str, int]) -> None:
    """Each batch has a loss, and the number of its rows."""
    weight, window = torch.nn.Parameter(torch.tensor(1.0)), Window()
    window.start()
    for total, rows in batches:
        loss = window.add(Loss(total * weight, torch.tensor(rows)))
        assert loss == total  # divided by the one row of the first batch
        (loss / divided_by.get("divided_by", 1)).backward()
    mean = window.finish(torch.optim.SGD([weight], lr=1.0), **divided_by)
    rows = sum(rows for _, rows in batches)
    assert float(mean) == float(weight.grad) == pytest.approx(sum(total for total, _ in batches) / rows)
    assert float(window.share) == pytest.approx(divided_by.get("divided_by", 1) / rows)


@pytest.mark.parametrize(
    ("averaged", "losses", "shares"), [(False, [2, 3], [0.25, 0.75]), (True, [1, 4.5], [0.5, 0.5])]
)
def test_the_sums_of_all_processes(averaged: bool, losses: list[float], shares: list[float]) -> None:
    first, second = together(2, train_on_one_row_and_on_three, averaged)
    assert [first.pop("loss"), second.pop("loss")] == pytest.approx(losses)
    assert [first.pop("share"), second.pop("share")] == pytest.approx(shares)
    assert first == second == {"mean": 2.75, "gradients": [0.75, 0.75, 1.25]}


def train_on_one_row_and_on_three(averaged: bool) -> dict[str, Any]:
    """What this process has. The losses are Σ s and 2 Σ s + 5 o, and only the second process uses o."""
    distributed.init_process_group("gloo")
    shared, other, window = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.tensor(1.0)), Window()
    total, count = (2 * shared.sum() + 5 * other, 3) if distributed.get_rank() else (shared.sum(), 1)
    window.start()
    more = {"averaged": True} if averaged else {}
    loss = window.add(Loss(total, torch.tensor(count)), **more)
    loss.backward()
    for parameter in (shared, other) if averaged else ():  # as DistributedDataParallel does
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad / 2
        distributed.all_reduce(parameter.grad)
    mean = window.finish(torch.optim.SGD([shared, other], lr=1.0), **more)
    gradients = [*shared.grad.tolist(), float(other.grad)]
    return {"loss": float(loss), "share": float(window.share), "mean": float(mean), "gradients": gradients}


@pytest.mark.parametrize("kind", ["16-mixed", "bf16-mixed"])
def test_mixed_precision(world, steady, tasks, kind) -> None:
    """A gradient scaler multiplies all gradients of a window alike, and what callbacks see is unscaled."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if kind == "16-mixed" else None
    arguments = training(world, steady, tasks["instructions"], "--batch-size", 2, "--accumulate-grad-batches", 4)
    found = compared(arguments, plugins=[MixedPrecision(kind, "cpu", scaler)])
    assert max(found.errors) < {"16-mixed": 0.01, "bf16-mixed": 0.05}[kind]


@pytest.mark.parametrize("adapted", [True, False], ids=["adapted", "plain"])
@pytest.mark.parametrize("task", some_slow(["classification", "instructions", "summarization"], quick=["instructions"]))
def test_windows_train_as_batches(world, steady, tasks, tmp_path, task, adapted) -> None:
    arguments = training(world, steady if adapted else None, tasks[task], "--project-dir", tmp_path)
    arguments += ("--gradient-clip-val", 0.5)
    assert run(*arguments, "--batch-size", 8, "--project", "batches") == 0
    for size, window in ((4, 2), (1, 8)):
        windows = ("--batch-size", size, "--accumulate-grad-batches", window, "--project", f"windows-{window}")
        assert run(*arguments, *windows) == 0
        one, other = (weights(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("batches", windows[-1]))
        for name in one:
            assert torch.allclose(one[name], other[name], atol=1e-6, rtol=1e-5), (name, window)


def test_the_curve_has_the_mean_loss_of_each_window(world, steady, tasks, tmp_path) -> None:
    arguments = (*training(world, steady, tasks["instructions"]), "--project-dir", tmp_path, "--max-epochs", 1)
    more = ("--accelerator", "cpu", "--logger", "csv", "--log-every-n-steps", 1)
    curves = []
    for size, window in ((8, 1), (2, 4)):
        sizes = ("--batch-size", size, "--accumulate-grad-batches", window, "--project", f"windows-{window}")
        assert main([str(each) for each in (*arguments, *more, *sizes)]) == 0
        with (tmp_path / f"windows-{window}" / "logs" / "metrics.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["train/loss"]]
        curves.append([float(row["train/loss"]) for row in rows])
    assert len(curves[0]) == -(-ROWS // 8)
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)


def test_scores_from_training_see_the_gradient_of_the_window(world, steady, tasks, tmp_path) -> None:
    _, *rest = training(world, steady, tasks["instructions"], "--project-dir", tmp_path)
    arguments = ("train-dyrealloc", *rest, "--imp-source", "training", "--turn-on-percentile", 0.5)
    arguments += ("--realloc-warmup-epochs", 1, "--max-epochs", 3)  # the first epoch switches without scores
    for size, window in ((8, 1), (2, 4)):
        sizes = ("--batch-size", size, "--accumulate-grad-batches", window, "--realloc-N", 2 * window)
        limit = ("--imp-limit-test-batches", window)
        assert run(*arguments, *sizes, *limit, "--project", f"windows-{window}") == 0
    ours, theirs = (history.read(tmp_path / f"windows-{window}") for window in (1, 4))
    assert len(ours.decisions) == 6
    for one, other in zip(ours.decisions, theirs.decisions, strict=True):
        assert other.scores == pytest.approx(one.scores, rel=1e-4)


def test_processes_that_train_different_parameters_are_stopped() -> None:
    """Without the check, they would add gradients of different parameters."""
    same, other = together(2, train_one_parameter_each, False), together(2, train_one_parameter_each, True)
    assert same == ["", ""]
    assert len(set(other)) == 1
    assert "the processes disagree about which parameters are trained; run all of them on machines" in other[0]


def train_one_parameter_each(differ: bool) -> str:
    """The message of this process."""
    distributed.init_process_group("gloo")
    first, second = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    trained, frozen = (first, second) if not differ or distributed.get_rank() == 0 else (second, first)
    frozen.requires_grad_(False)
    window = Window()
    window.start()
    window.add(Loss(trained.sum(), torch.tensor(3))).backward()
    try:
        window.finish(torch.optim.SGD([first, second], lr=1.0))
    except UserError as error:
        return str(error)
    return ""
