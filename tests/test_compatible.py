"""Options that exclude each other: what is refused, and beside it what is nearly the same and is accepted."""

from __future__ import annotations

import pytest

from actions.command.parse import parse_command
from actions.command.request import Request
from actions.request.elements import request_of
from tests.mistakes import refusal
from tests.world import World, command, write_jsonl


def asked(*arguments: object) -> Request:
    return request_of(parse_command(command(*arguments)))


PLAIN_AUTO = ("train", "opt", "sst2", "--learning-rate", "auto")
ON_TWO = ("--strategy", "fsdp", "--num-devices", 2)
SHRINK = ("train-dyrealloc", "opt_lora", "sst2", "--budget-schedule", "shrink")


@pytest.mark.parametrize(
    ("accepted", "refused", "message"),
    [
        (PLAIN_AUTO, (*PLAIN_AUTO, *ON_TWO), "--learning-rate auto cannot be used with --strategy fsdp"),
        (("train", "opt_lora", "sst2", "--learning-rate", "auto", *ON_TWO), None, ""),
        (
            (*SHRINK, "--shrink-units", "rank"),
            (*SHRINK, "--shrink-units", "rank", "--shrink-tolerance", 0.1),
            "--shrink-tolerance cannot be used with --shrink-units rank",
        ),
        ((*SHRINK, "--shrink-tolerance", 0.1), None, ""),
        (
            (*SHRINK, "--shrink-start", 0.2, "--shrink-end", 0.3),
            (*SHRINK, "--shrink-start", 0.3, "--shrink-end", 0.3),
            "--shrink-start 0.3 is not before --shrink-end 0.3",
        ),
        (SHRINK, (*SHRINK, "--budget-time", 0.5), "--budget-time cannot be used with --budget-schedule shrink"),
        (
            SHRINK[:3],
            (*SHRINK[:3], "--shrink-tolerance", 0.1),
            "--shrink-tolerance is given with --budget-schedule fixed",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused_and_what_is_not(
    world: World, accepted: tuple[object, ...], refused: tuple[object, ...] | None, message: str
) -> None:
    base = ("--load", world.opt, "--pretrained", "--dataset-saved-path", world.sst2)
    asked(*accepted, *base)
    if refused is not None:
        assert refusal(asked, *refused, *base).startswith(message)


def test_compiling_needs_one_of_two_compilers(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str] = []
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}" if name in found else None)
    assert "install g++" in refusal(asked, *world.training("--compile"))
    for compiler in ("g++", "clang++"):
        found[:] = [compiler]
        asked(*world.training("--compile"))


def test_a_stream_ends_with_its_steps(world: World, tmp_path) -> None:
    rows = [{"text": f"row {number}", "label": number % 2} for number in range(8)]
    for split in ("train", "validation"):
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
    given = ("train", "opt_lora", "--load", world.opt, "--dataset", tmp_path, "--streaming", "--max-epochs", -1)
    asked(*given, "--max-steps", 3)
    assert "--streaming needs --max-steps" in refusal(asked, *given)
    said = refusal(asked, *given, "--max-steps", 3, "--limit-train-batches", 1)
    assert said.startswith("--streaming cannot be used with --limit-train-batches")
