"""A run whose files cannot be written, or that ends while it writes them: nothing that was saved is lost."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from tests.faults.inject import CALLS, Fault
from tests.faults.server import Server
from tests.forked import Outcome
from tests.world import World, metrics_of, same_weights, write_lora

#: Twelve steps with several saves, validations within the epochs, and reallocations.
SAVES = ("--max-epochs", 1, "--checkpoint-every-n-steps", 4, "--val-check-interval", 6, "--imp-limit-test-batches", 2)
SAVES += ("--realloc-N", 6)
STEMS = ("last", "best")


@pytest.fixture(scope="module")
def arguments(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    lora = write_lora(tmp_path_factory.mktemp("configs") / "lora.toml", "q_proj", "v_proj", "w1", lora_dropout=0.1)
    _, _, *rest = world.training("--lora-config", lora, *SAVES)
    return ("train-dyrealloc", "opt_lora", *rest)


@pytest.fixture(scope="module")
def counted(server: Server, arguments: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `run`, the run that nothing befalls, and the number of its calls."""
    folder = tmp_path_factory.mktemp("counted")
    warm = server.run(*arguments, "--project-dir", folder, "--project", "warm")  # writes the data cache, once
    assert warm.code == 0, warm.err
    ended = server.run(*arguments, "--project-dir", folder, "--project", "run", fault=Fault(counted=str(folder)))
    assert ended.code == 0, ended.err
    return folder


@pytest.fixture(scope="module")
def whole(counted: Path) -> Path:
    return counted / "run"


@pytest.fixture(scope="module")
def calls(counted: Path) -> dict[str, int]:
    """How often a run calls each function that a fault can befall."""
    return {call: int((counted / call).read_text()) for call in CALLS}


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def temporary(folder: Path) -> list[str]:
    return [name for name in files_of(folder) if ".tmp" in name or ".old" in name]


def assert_continues(server: Server, arguments: tuple[object, ...], folder: Path, whole: Path) -> None:
    """The run continues from its last checkpoint, or starts again if it has none, and ends as the whole one did."""
    run, last = folder / "run", folder / "run" / "checkpoints" / "last.ckpt"
    if last.is_file():
        again = server.run(arguments[0], "--resume-training", "--load", last)
    else:
        again = server.run(*arguments, "--project-dir", folder, "--project", "anew")
        run = folder / "anew"
    assert again.code == 0, again.err
    for stem in STEMS:
        assert same_weights(run / "checkpoints" / f"{stem}.ckpt", whole / "checkpoints" / f"{stem}.ckpt"), stem
    assert metrics_of(run) == metrics_of(whole)
    for name in ("reallocation_history.toml", "reallocation_frequency.toml"):
        assert (run / name).read_text() == (whole / name).read_text(), name
    assert files_of(run) - {".lock"} == files_of(whole) - {".lock"}


def assert_one_line(ended: Outcome) -> None:
    assert ended.problem is None, (ended.problem, ended.err)
    assert ended.code == 2, ended.err


def moments(count: int, draw: random.Random) -> list[int]:
    """The first, the last and up to a thousand other calls."""
    return sorted({1, count, *draw.sample(range(1, count + 1), min(1000, count))})


@pytest.mark.slow
class TestEveryMoment:
    """A fault at one moment of writing after another."""

    @pytest.mark.parametrize("call", CALLS)
    def test_killed(self, server, arguments, whole, calls, tmp_path, call: str) -> None:
        for at in moments(calls[call], random.Random(call)):
            folder = tmp_path / str(at)
            fault = Fault(call, at, "SIGKILL")
            ended = server.run(*arguments, "--project-dir", folder, "--project", "run", fault=fault)
            assert ended.code == -signal.SIGKILL
            assert_continues(server, arguments, folder, whole)

    @pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
    def test_the_disk_fails(self, server, arguments, whole, calls, tmp_path, error: str) -> None:
        for at in moments(calls["fsync"], random.Random(error)):
            folder = tmp_path / str(at)
            fault = Fault("fsync", at, error)
            ended = server.run(*arguments, "--project-dir", folder, "--project", "run", fault=fault)
            assert_one_line(ended)
            assert not temporary(folder)
            assert_continues(server, arguments, folder, whole)

    @pytest.mark.parametrize(("sent", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
    def test_stopped(self, server, arguments, whole, calls, tmp_path, sent: str, code: int) -> None:
        for at in moments(calls["fsync"], random.Random(sent)):
            folder = tmp_path / str(at)
            fault = Fault("fsync", at, sent)
            ended = server.run(*arguments, "--project-dir", folder, "--project", "run", fault=fault)
            assert ended.code == code, ended.err
            assert "Traceback" not in ended.err
            assert not temporary(folder)
            assert_continues(server, arguments, folder, whole)

    def test_the_system_refuses_large_files(self, server, arguments, whole, calls, tmp_path) -> None:
        """From one moment on. Checkpoints and pictures are larger than the limit; every library writes as it does."""
        for at in moments(calls["replace"], random.Random("limit")):
            folder = tmp_path / str(at)
            fault = Fault("replace", at, "EFBIG")
            ended = server.run(*arguments, "--project-dir", folder, "--project", "run", fault=fault)
            if ended.code != 0:  # 0: only small files were left to write
                assert_one_line(ended)
            assert not temporary(folder)
            assert_continues(server, arguments, folder, whole)
