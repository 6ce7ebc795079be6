"""`--compile`: the same numbers, names and files as without it, and one version of a block for each pattern."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

from actions.command.parse import parse_command
from actions.request.elements import request_of
from heterolora.common.errors import UserError
from model import compiling
from tests.adapted import Adapted, adapted, lora_config, shortcut_config
from tests.tiny import tiny_batch
from tests.world import World, command, metrics_of, run, same_weights, weights


def gradients(model: Adapted, batch: dict[str, torch.Tensor], precision: torch.dtype | None) -> list[torch.Tensor]:
    """The loss and the gradients of a step, in which dropout draws the same numbers each time."""
    torch.manual_seed(0)
    with contextlib.nullcontext() if precision is None else torch.autocast("cpu", precision):
        logits = model.network.train()(**batch).logits.float()
    loss = F.cross_entropy(logits, torch.arange(len(logits)))
    trained = [weight for weight in model.network.parameters() if weight.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss, trained, materialize_grads=True)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "renormalize", "precision"), [("opt-pre", False, None), ("roberta", True, torch.bfloat16)]
)
def test_one_version_of_a_block_for_each_pattern(monkeypatch, variant: str, renormalize: bool, precision) -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    monkeypatch.setattr(compiling, "BACKEND", {"backend": counter})
    lora, shortcut = lora_config(lora_dropout=0.2), shortcut_config(renormalize)
    model, plain = (adapted(variant, "classification", lora, shortcut).train_b() for _ in range(2))
    compiling.compile_blocks(model.space.blocks)
    assert model.network.state_dict().keys() == plain.network.state_dict().keys()
    every = [element.key for element in model.space.elements]
    patterns, lengths = [set(every), {every[0]}, {every[-1]}, {every[0]}, set(every)], (7, 9, 11, 8, 5)
    seen = set()
    for on, length in zip(patterns, lengths, strict=True):
        for each in (model, plain):
            each.space.switch(on)
        for rows in (3, 2):
            batch = tiny_batch(rows=rows, length=length)
            found, expected = (gradients(each, batch, precision) for each in (model, plain))
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        seen |= {(layer, *sorted(key for key in on if key.startswith(f"layer_{layer}."))) for layer in (0, 1)}
        assert counter.frame_count <= len(seen)


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a C++ compiler."""
    monkeypatch.setattr(compiling, "BACKEND", {"backend": "aot_eager"})


def assert_close(one: Path, other: Path) -> None:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_run(world: World, tmp_path: Path, quickly: None) -> None:
    torch._dynamo.reset()
    options = ("--project-dir", tmp_path, "--max-steps", 6, "--limit-val-batches", 1, "--project")
    assert run(*world.training(*options, "plain")) == 0
    assert run(*world.training(*options, "compiled", "--compile")) == 0
    assert run(*world.training(*options, "cut", "--compile", "--stop-after", 3)) == 0
    plain, compiled, cut = (tmp_path / name / "checkpoints/last.ckpt" for name in ("plain", "compiled", "cut"))
    assert_close(plain, compiled)
    assert metrics_of(tmp_path / "compiled").keys() == metrics_of(tmp_path / "plain").keys()
    assert run("train", "--resume-training", "--load", cut) == 0
    assert same_weights(compiled, cut)


@pytest.mark.slow
def test_a_run_with_the_real_compiler(world: World, tmp_path: Path) -> None:
    torch._dynamo.reset()
    options = ("--project-dir", tmp_path, "--max-steps", 4, "--limit-val-batches", 1, "--project")
    assert run(*world.training(*options, "plain")) == 0
    assert run(*world.training(*options, "compiled", "--compile")) == 0
    assert_close(*(tmp_path / name / "checkpoints/last.ckpt" for name in ("plain", "compiled")))


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (("--cache-frozen-prefix",), "--cache-frozen-prefix"),
        (("--gradient-checkpointing",), "--gradient-checkpointing"),
        (("--quantize", "nf4"), "--quantize nf4"),
        (("--num-devices", 2, "--strategy", "fsdp"), "--strategy fsdp"),
    ],
)
def test_what_it_cannot_be_used_with(world: World, more: tuple[object, ...], reason: str) -> None:
    with pytest.raises(UserError, match=f"--compile cannot be used with {reason}"):
        request_of(parse_command(command(*world.training("--compile", *more))))


def test_it_is_refused_for_a_search(world: World) -> None:
    with pytest.raises(UserError, match="each reallocation would compile its blocks again"):
        request_of(parse_command(command("train-dyrealloc", *world.training("--compile")[1:])))


def test_it_needs_a_compiler(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler; install g\+\+"):
        request_of(parse_command(command(*world.training("--compile"))))
