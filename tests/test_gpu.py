"""What is different on a GPU. `make test-gpu` runs these tests on CUDA devices, and skips them where there is none.

Most bodies take the accelerator as an argument and also run on a CPU in the other suites, so that they are sound.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor

from actions.command.parse import parse_command
from actions.request.elements import request_of
from actions.training.experiment import build
from benchmarks import __main__ as benchmark
from heterolora.choosing import history
from heterolora.choosing.ranks import Budget
from heterolora.saliency import get
from heterolora.saliency.from_training import TrainingGradients
from heterolora.search import Plan
from main import main
from model.reallocation.callback import Reallocate
from model.reallocation.sources import DedicatedScores, TrainingScores
from model.task.fine_tuning import FineTuning
from options.scoring import ScoringOptions
from tests import test_plan
from tests.test_device import on_device, step
from tests.trainer import quiet_trainer
from tests.world import World, model_folder, run_apart, text_folder, weights, write_lora

GPUS = torch.cuda.device_count()
STEPS = 8
on_gpu = pytest.mark.gpu
on_cpu_slowly = pytest.param("cpu", marks=pytest.mark.slow)
BOTH = [on_cpu_slowly, pytest.param("gpu", marks=on_gpu)]
needs_two = pytest.mark.skipif(GPUS < 2, reason="needs two GPUs")


def trained(world: World, folder: Path, accelerator: str, name: str, *more: object) -> dict[str, float]:
    """Train a classifier, and return its metrics. Later options override earlier ones."""
    options = ("--accelerator", accelerator, "--logger", "none", "--project-dir", folder, "--project", name)
    words = world.training("--max-steps", STEPS, "--limit-val-batches", 3, *options, *more)
    assert main([str(word) for word in words]) == 0
    return json.loads((folder / name / "metrics.json").read_text())["metrics"]["validation"]


def of_run(folder: Path, name: str) -> dict[str, Tensor]:
    return weights(folder / name / "checkpoints" / "last.ckpt")


def assert_alike(folder: Path, one: str, other: str, likeness: float) -> None:
    """Every B started at 0: the cosine of the angle between the two runs' B is at least `likeness`."""
    pairs = [
        {name: value.cpu().flatten() for name, value in of_run(folder, run).items() if name.endswith(".B")}
        for run in (one, other)
    ]
    a, b = (torch.cat([of_name[name] for name in sorted(of_name)]) for of_name in pairs)
    assert torch.cosine_similarity(a, b, dim=0) > likeness


# ---- precision


@pytest.mark.parametrize(
    ("accelerator", "precision"),
    [
        pytest.param("cpu", "bf16-mixed", marks=pytest.mark.slow),
        *(pytest.param("gpu", each, marks=on_gpu) for each in ("32", "16-mixed", "bf16-mixed", "bf16-true")),
    ],
)
def test_a_precision_trains_as_float32_on_a_cpu(world: World, tmp_path: Path, accelerator: str, precision: str) -> None:
    sgd = ("--optimizer", "sgd", "--learning-rate", 0.5, "--lora-config", write_lora(tmp_path / "lora.toml"))
    expected = trained(world, tmp_path, "cpu", "float32", *sgd)
    found = trained(world, tmp_path, accelerator, "other", *sgd, "--precision", precision)
    assert found["loss"] == pytest.approx(expected["loss"], abs=0.02)
    assert_alike(tmp_path, "float32", "other", 0.95)


class Overflow(pl.Callback):
    """Makes the head's gradient infinite in one batch, and records what follows each batch."""

    def __init__(self, batch: int, source: TrainingScores, scaler: torch.amp.GradScaler) -> None:
        self.batch, self.source, self.scaler = batch, source, scaler
        self.now, self.seen = 0, []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: FineTuning, batch: Any, batch_idx: int) -> None:
        self.now = batch_idx

    def on_after_backward(self, trainer: pl.Trainer, pl_module: FineTuning) -> None:
        if self.now == self.batch:
            pl_module.network.score.weight.grad[0, 0] = torch.inf

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: FineTuning, *_: object) -> None:
        weight = pl_module.network.score.weight.detach().clone()
        self.seen.append((self.source.gradients.windows, float(self.scaler.get_scale()), weight))


@pytest.mark.parametrize("accelerator", ["cpu", pytest.param("gpu", marks=on_gpu)])
def test_a_window_that_the_scaler_skips(world: World, tmp_path: Path, accelerator: str) -> None:
    """It counts neither in the scores from training nor in the history, and the weights stay."""
    words = world.training("--max-epochs", 1, "--accelerator", accelerator, "--precision", "16-mixed")
    lora = write_lora(tmp_path / "lora.toml", "q_proj", "v_proj", "w1")
    request = request_of(parse_command(["train-dyrealloc", *words[1:], "--lora-config", str(lora)]))
    experiment, device = build(request), "cuda" if accelerator == "gpu" else "cpu"
    scoring = ScoringOptions("grad_norm", imp_limit_test_batches=6, imp_source="training")
    gradients = TrainingGradients(experiment.task.space, get("grad_norm").score)
    first = DedicatedScores(scoring, lambda rank, world: experiment.data.scoring_batches(2, rank, world))
    source = TrainingScores(gradients, 6, first)
    reallocate = Reallocate(Plan(Budget("share", 0.25), "fixed"), 6, 0, source, tmp_path, print)
    scaler = torch.amp.GradScaler(device, init_scale=1024.0)
    overflow = Overflow(3, source, scaler)
    plugins = [MixedPrecision("16-mixed", device, scaler)]
    trainer = quiet_trainer([overflow, reallocate], accelerator=accelerator, devices=1, max_epochs=1, plugins=plugins)
    trainer.fit(experiment.task, datamodule=experiment.data)
    windows, scales, heads = zip(*overflow.seen, strict=True)
    assert windows[:6] == (1, 2, 3, 3, 4, 5)  # batch 3 does not count
    assert scales[:4] == (1024, 1024, 1024, 512)
    assert torch.equal(heads[3], heads[2])
    assert not torch.equal(heads[4], heads[3])
    decisions = history.read(tmp_path).decisions
    assert [decision.step for decision in decisions] == [0, 6]
    assert all(0 < score < 1e3 for decision in decisions for score in decision.scores)


# ---- memory


@pytest.mark.parametrize("accelerator", BOTH)
def test_gradient_checkpointing(world: World, tmp_path: Path, accelerator: str) -> None:
    plain = trained(world, tmp_path, accelerator, "plain")
    checkpointed = trained(world, tmp_path, accelerator, "checkpointed", "--gradient-checkpointing")  # with dropout
    assert checkpointed["loss"] == pytest.approx(plain["loss"], rel=1e-3)
    assert_alike(tmp_path, "plain", "checkpointed", 0.999)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("accelerator", BOTH)
def test_a_quantised_base(world: World, tmp_path: Path, accelerator: str, kind: str, monkeypatch) -> None:
    pytest.importorskip("bitsandbytes")
    if accelerator == "cpu":  # the program refuses what is slow
        monkeypatch.setattr("actions.training.trainer.check_quantize", lambda *_: None)
    wide = model_folder(tmp_path / "wide", hidden_size=64, ffn_dim=128, word_embed_proj_dim=64)
    options = ("--load", wide, "--precision", "bf16-mixed")
    plain = trained(world, tmp_path, accelerator, "plain", *options)
    options += ("--quantize", kind)
    found = trained(world, tmp_path, accelerator, "whole", *options)
    assert found["loss"] == pytest.approx(plain["loss"], abs=0.1)
    trained(world, tmp_path, accelerator, "cut", *options, "--stop-after", STEPS // 2)
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    assert main(["train", "--resume-training", "--load", str(last), "--accelerator", accelerator]) == 0
    assert_alike(tmp_path, "whole", "cut", 0.999)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("name", ["opt", "gemma", "roberta"])
@on_gpu
def test_the_peak_is_that_of_the_plan(tmp_path: Path, capsys, name: str, checkpointing: bool) -> None:
    """`tests/test_plan.py` runs the same steps on a CPU. Here libraries may add workspaces of some MB."""
    lora = write_lora(tmp_path / "lora.toml", "q_proj", "v_proj", "w1", r=4)
    plan = test_plan.plan_of(capsys, name, tmp_path, lora)
    test_plan.train_twice(name, lora, checkpointing, "cuda")  # allocates the workspaces
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    test_plan.train_twice(name, lora, checkpointing, "cuda")
    peak = torch.cuda.max_memory_allocated() - before
    print(f"{name}, checkpointing {checkpointing}: peak {peak:,}, plan {plan[checkpointing]:,} bytes")
    assert peak == pytest.approx(plan[checkpointing], rel=0.1)


# ---- speed


@pytest.mark.parametrize("accelerator", BOTH)
def test_a_search(world: World, tmp_path: Path, accelerator: str) -> None:
    words = world.training("--max-steps", STEPS, "--lora-config", write_lora(tmp_path / "lora.toml", "q_proj", "w1"))
    for name in ("gain", "alpha_test", "synflow", "activation", "spectral"):
        options = ("--importance-test-name", name, "--imp-limit-test-batches", 4, "--realloc-N", 4, "--logger", "none")
        options += ("--project-dir", tmp_path, "--project", name, "--accelerator", accelerator)
        options += ("--realloc-warmup-epochs", 0)
        assert main([str(word) for word in ("train-dyrealloc", *words[1:], *options)]) == 0
        assert len(history.read(tmp_path / name).decisions) == 2


@pytest.mark.parametrize("accelerator", BOTH)
def test_attention(world: World, tmp_path: Path, accelerator: str) -> None:
    if accelerator == "gpu" and importlib.util.find_spec("flash_attn") is None:
        pytest.skip("flash_attn is not installed")
    fast = "flash_attention_2" if accelerator == "gpu" else "sdpa"
    options = ("--precision", "bf16-mixed", "--attention")
    eager = trained(world, tmp_path, accelerator, "eager", *options, "eager")
    assert trained(world, tmp_path, accelerator, "fast", *options, fast)["loss"] == pytest.approx(
        eager["loss"], abs=0.02
    )
    assert_alike(tmp_path, "eager", "fast", 0.9)


@on_gpu
def test_a_step_waits_for_nothing(world: World, tmp_path: Path) -> None:
    """`tests/test_device.py` counts the waits of a step on a CPU. Here CUDA itself reports them."""
    text = ("wikitext2", "--dataset-saved-path", text_folder(tmp_path / "text"), "--max-token-len", 8)
    words = ("train", "opt_lora", *text, "--load", world.opt, "--pretrained", "--lora-config", world.lora)
    task, batches = on_device(words, torch.device("cuda"))
    step(task, batches)
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        step(task, batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_gpu
def test_the_time_of_a_step_with_peft() -> None:
    """It is printed and not compared."""
    sizes = ("--hidden-size", "768", "--layers", "12", "--rows", "16", "--tokens", "128", "--rounds", "15")
    benchmark.main(["lora-vs-peft", "--device", "cuda", *sizes])


# ---- several devices


@pytest.mark.parametrize("accelerator", [on_cpu_slowly, pytest.param("gpu", marks=[on_gpu, needs_two])])
def test_all_devices_train_as_one(world: World, tmp_path: Path, accelerator: str) -> None:
    devices = GPUS if accelerator == "gpu" else 2
    options = ("--lora-config", write_lora(tmp_path / "lora.toml"), "--max-epochs", 1, "--project-dir", tmp_path)
    options += ("--realloc-N", 4, "--realloc-warmup-epochs", 1)
    for name, size, number in (("one", 2 * devices, 1), ("all", 2, devices)):
        more = ("--batch-size", size, "--num-devices", number, "--accelerator", accelerator, "--project", name)
        finished = run_apart("train-dyrealloc", *world.training(*options)[1:], *more)
        assert finished.returncode == 0, finished.stderr
    assert_alike(tmp_path, "one", "all", 0.999)
    ours, theirs = (history.read(tmp_path / name) for name in ("one", "all"))
    assert [decision.on for decision in ours.decisions] == [decision.on for decision in theirs.decisions]


@pytest.mark.parametrize("accelerator", [on_cpu_slowly, pytest.param("gpu", marks=[on_gpu, needs_two])])
@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_a_sharded_base_is_a_replicated_one(world: World, tmp_path: Path, accelerator: str, precision: str) -> None:
    devices = GPUS if accelerator == "gpu" else 2
    for strategy in ("ddp", "fsdp"):
        more = ("--num-devices", devices, "--strategy", strategy, "--accelerator", accelerator)
        more += ("--precision", precision, "--max-steps", 4, "--project-dir", tmp_path, "--project", strategy)
        finished = run_apart(*world.training(*more, "--batch-size", 2))
        assert finished.returncode == 0, finished.stderr
    assert_alike(tmp_path, "ddp", "fsdp", 0.9999)
