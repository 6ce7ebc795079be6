"""Real processes: two of them train as one does, and signals end a run where it can go on exactly."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from actions.run.endings import LOST
from heterolora.choosing import history
from tests.world import (
    ROOT,
    World,
    command,
    instruction_folder,
    metrics_of,
    run,
    run_apart,
    same_weights,
    weights,
    write_lora,
)

TWO = ("--num-devices", 2)


@pytest.fixture(scope="module")
def steady(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA configuration without dropout, whose random numbers differ between processes."""
    return write_lora(tmp_path_factory.mktemp("configs") / "lora.toml", "q_proj", "v_proj", "w1")


def assert_same_run(one: Path, two: Path) -> None:
    a, b = (weights(folder / "checkpoints" / "last.ckpt") for folder in (one, two))
    assert a.keys() == b.keys()
    for name in a:
        assert torch.allclose(a[name], b[name], atol=1e-5, rtol=0), name
    for split, figures in metrics_of(one).items():
        assert metrics_of(two)[split] == pytest.approx(figures, abs=1e-5)


class TestTwoProcesses:
    def test_train_and_test_as_one(self, world: World, steady: Path, tmp_path: Path) -> None:
        """45 rows in global batches of 4: a last batch of one row, which only one of the processes has."""
        shared = ("--lora-config", steady, "--project-dir", tmp_path, "--max-epochs", 2, "--gradient-clip-val", 0.5)
        shared += ("--loraplus-ratio", 4)
        assert run(*world.training(*shared, "--project", "one")) == 0
        two = world.training(*shared, "--batch-size", 2, *TWO, "--strategy", "ddp", "--project", "two")
        finished = run_apart(*two)
        assert finished.returncode == 0, finished.stderr
        assert_same_run(tmp_path / "one", tmp_path / "two")
        assert finished.stdout.count("run folder:") == 1  # said by the first process alone
        recorded = torch.load(tmp_path / "two" / "checkpoints" / "last.ckpt", weights_only=True)["heterolora"]["run"]
        assert recorded == json.loads((tmp_path / "two" / "run.json").read_text())["id"]

    @pytest.mark.parametrize("adapted", [pytest.param(True, id="adapted"), pytest.param(False, id="plain")])
    @pytest.mark.slow
    def test_windows_are_batches(self, world: World, steady: Path, tmp_path: Path, adapted: bool) -> None:
        """22 rows with uneven responses: windows of 8 rows, and a last one of 6, on two processes."""
        data = ("alpaca", "--dataset-saved-path", instruction_folder(tmp_path / "alpaca", 22), "--max-token-len", 60)
        base = ("--load", world.opt, "--lora-config", steady) if adapted else ()
        shared = ("train", "opt_lora" if adapted else world.opt, *data, *base, "--pretrained", "--max-epochs", 2)
        shared += ("--optimizer", "sgd", "--learning-rate", 0.05, "--project-dir", tmp_path)
        assert run(*shared, "--batch-size", 8, "--project", "one") == 0
        windows = ("--batch-size", 1, "--accumulate-grad-batches", 4, *TWO, "--project", "two")
        finished = run_apart(*shared, *windows, "--strategy", "ddp")
        assert finished.returncode == 0, finished.stderr
        a, b = (weights(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("one", "two"))
        for name in a:
            assert torch.allclose(a[name], b[name], atol=1e-6, rtol=1e-5), name

    @pytest.mark.slow  # `test_sharding` compares two processes that reallocate in the fast suite
    @pytest.mark.parametrize("strategy", ["ddp", "ddp_find_unused_parameters_true"])
    def test_reallocate_as_one(self, world: World, steady: Path, tmp_path: Path, strategy: str) -> None:
        _, _, *rest = world.training("--lora-config", steady, "--project-dir", tmp_path, "--max-epochs", 2)
        shared = ("train-dyrealloc", "opt_lora", *rest, "--realloc-N", 0.25, "--turn-on-percentile", 0.5)
        shared += ("--realloc-warmup-epochs", 1)  # so that it does switch
        shared += ("--importance-test-name", "grad_norm")  # `gain` takes the noise of smaller batches into account
        assert run(*shared, "--imp-limit-test-batches", 3, "--project", "one") == 0
        two = ("--batch-size", 2, "--imp-limit-test-batches", 6, *TWO, "--strategy", strategy, "--project", "two")
        finished = run_apart(*shared, *two)
        assert finished.returncode == 0, finished.stderr
        ours, theirs = (history.read(tmp_path / name) for name in ("one", "two"))
        assert [d.on for d in ours.decisions] == [d.on for d in theirs.decisions]
        assert len({d.on for d in ours.decisions}) > 1
        assert_same_run(tmp_path / "one", tmp_path / "two")

    @pytest.mark.slow
    def test_scores_from_training_as_one(self, world: World, steady: Path, tmp_path: Path) -> None:
        _, _, *rest = world.training("--lora-config", steady, "--project-dir", tmp_path, "--max-epochs", 2)
        shared = ("train-dyrealloc", "opt_lora", *rest, "--realloc-N", 0.25, "--turn-on-percentile", 0.5)
        # A warm-up, so that the first choice needs no scoring batches, which would differ in their size.
        shared += ("--imp-source", "training", "--imp-limit-test-batches", 3, "--realloc-warmup-epochs", 1)
        assert run(*shared, "--project", "one") == 0
        # Four rows in a window, as in a batch of the other run: four batches of the epoch are one there.
        windows = ("--batch-size", 1, "--accumulate-grad-batches", 2, "--imp-limit-test-batches", 6, *TWO)
        finished = run_apart(*shared, *windows, "--project", "two")
        assert finished.returncode == 0, finished.stderr
        ours, theirs = (history.read(tmp_path / name) for name in ("one", "two"))
        for one, two in zip(ours.decisions, theirs.decisions, strict=True):
            assert two.scores == pytest.approx(one.scores, rel=1e-3)
            assert one.on == two.on
        assert_same_run(tmp_path / "one", tmp_path / "two")

    @pytest.mark.slow
    @pytest.mark.parametrize("lost", ["the first", "the second"])
    def test_one_that_is_killed_ends_the_other_in_one_line(self, world, steady, tmp_path, lost: str) -> None:
        _, _, *rest = world.training("--lora-config", steady, "--project-dir", tmp_path, "--max-epochs", 500)
        arguments = ("train-dyrealloc", "opt_lora", *rest, "--batch-size", 2, *TWO, "--project", "run")
        started = start(*arguments, "--checkpoint-every-n-steps", 1)
        last = tmp_path / "run" / "checkpoints" / "last.ckpt"
        wait_for(lambda: steps_of(last) > 5, started)
        children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
        os.kill(started.pid if lost == "the first" else int(children[0]), signal.SIGKILL)
        _, said = started.communicate(timeout=300)  # the output of both
        assert started.returncode == (-signal.SIGKILL if lost == "the first" else 1)
        assert said == f"error: {LOST}\n"
        finished = run_apart("train-dyrealloc", "--resume-training", "--load", last, "--max-steps", steps_of(last) + 2)
        assert finished.returncode == 0, finished.stderr


def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "main", *command(*arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, process: subprocess.Popen[str], seconds: float = 500.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.05)


def steps_of(checkpoint: Path) -> int:
    return torch.load(checkpoint, weights_only=True)["global_step"] if checkpoint.is_file() else -1


class TestSignals:
    def test_sigterm_saves_leaves_and_goes_on_exactly(self, world: World, tmp_path: Path) -> None:
        arguments = world.training("--project-dir", tmp_path, "--max-epochs", 60, "--accumulate-grad-batches", 2)
        started = start(*arguments, "--project", "run", "--checkpoint-every-n-steps", 1)
        last = tmp_path / "run" / "checkpoints" / "last.ckpt"
        wait_for(lambda: steps_of(last) > 5, started)
        started.send_signal(signal.SIGTERM)
        said, _ = started.communicate(timeout=60)
        assert started.returncode == 143
        assert f"--resume-training --load {last}" in said
        steps = steps_of(last)
        end = ("--max-steps", steps + 7)
        assert run("train", "--resume-training", "--load", last, *end) == 0
        assert run(*arguments, *end, "--project", "whole") == 0
        assert same_weights(last, tmp_path / "whole" / "checkpoints" / "last.ckpt")

    @pytest.mark.slow
    def test_sigterm_to_all_with_loading_processes(self, world: World, tmp_path: Path) -> None:
        """As SLURM, systemd and `timeout` send it. The workers must not die before the step ends."""
        arguments = world.training("--project-dir", tmp_path, "--max-epochs", 500, "--num-workers", 2)
        started = start(*arguments, "--project", "run", "--checkpoint-every-n-steps", 1)
        last = tmp_path / "run" / "checkpoints" / "last.ckpt"
        wait_for(lambda: steps_of(last) > 5, started)
        children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
        assert len(children) >= 2
        for pid in (*map(int, children), started.pid):
            os.kill(pid, signal.SIGTERM)
        said, wrong = started.communicate(timeout=60)
        assert started.returncode == 143, wrong
        assert f"--resume-training --load {last}" in said

    @pytest.mark.slow
    def test_sigterm_to_two_processes(self, world: World, tmp_path: Path) -> None:
        arguments = world.training("--project-dir", tmp_path, "--max-epochs", 500, "--batch-size", 2, *TWO)
        started = start(*arguments, "--project", "run", "--checkpoint-every-n-steps", 1)
        last = tmp_path / "run" / "checkpoints" / "last.ckpt"
        wait_for(lambda: steps_of(last) > 5, started)
        children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
        for pid in (started.pid, *map(int, children)):
            os.kill(pid, signal.SIGTERM)
        started.communicate(timeout=60)
        assert started.returncode == 143
        assert steps_of(last) > 5

    @pytest.mark.slow
    @pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGUSR1])
    def test_a_preempted_slurm_job_is_requeued_and_goes_on(self, world: World, tmp_path: Path, sent: int) -> None:
        """A stand-in for `scontrol` notes what it is asked; the requeued job has the same id and command line."""
        scontrol = tmp_path / "bin" / "scontrol"
        scontrol.parent.mkdir()
        scontrol.write_text(f'#!/bin/sh\n[ "$1" = show ] || echo "$@" >> {tmp_path}/asked\n')
        scontrol.chmod(0o755)
        slurm = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
        slurm |= {"SLURM_NNODES": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_NODELIST": "localhost"}
        slurm |= {"SLURM_JOB_NAME": "search", "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}
        arguments = world.training("--project-dir", tmp_path, "--max-epochs", 40, "--auto-requeue")
        arguments += ["--checkpoint-every-n-steps", "1"]
        started = start(*arguments, **slurm)
        last = tmp_path / "opt_lora_classification_sst2_77" / "checkpoints" / "last.ckpt"
        wait_for(lambda: steps_of(last) > 5, started)
        started.send_signal(sent)
        started.communicate(timeout=60)
        assert started.returncode == 143
        assert (tmp_path / "asked").read_text() == "requeue 77\n"
        steps = steps_of(last)
        again = run_apart(*arguments, "--max-epochs", 1, "--max-steps", steps, **slurm, SLURM_RESTART_COUNT="1")
        assert again.returncode == 0, again.stderr
        assert "continuing from" in again.stdout
        assert len(list(tmp_path.glob("opt_lora_*"))) == 1


@pytest.mark.slow
def test_twenty_kills_at_random_moments(world: World, tmp_path: Path) -> None:
    """SIGKILL, resume, SIGKILL, … twenty times: the end is that of the run that was never stopped."""
    lora = write_lora(tmp_path / "lora.toml", "q_proj", "v_proj", "w1", "w2", lora_dropout=0.1)
    _, _, *rest = world.training("--lora-config", lora, "--project-dir", tmp_path, "--max-epochs", 100)
    arguments = ("train-dyrealloc", "opt_lora", *rest, "--realloc-N", 5, "--imp-limit-test-batches", 2)
    arguments += ("--checkpoint-every-n-steps", 1, "--imp-source", "training")
    whole = tmp_path / "whole"
    assert run(*arguments, "--project", "whole") == 0
    draw, killed, steps = random.Random(0), 0, []
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    next_command: tuple[object, ...] = (*arguments, "--project", "run")
    for _ in range(20):
        started = start(*next_command)
        # Counted in steps, of which there are enough for twenty kills, however fast the machine is.
        goal = steps_of(last) + draw.randint(2, 40)
        wait_for(lambda at=goal: steps_of(last) >= at, started)
        time.sleep(draw.uniform(0.0, 0.02))  # somewhere within a step, or within writing a file
        started.kill()
        started.communicate()
        killed += started.returncode == -signal.SIGKILL
        steps.append(steps_of(last))
        next_command = ("train-dyrealloc", "--resume-training", "--load", last)
    assert killed == 20, steps
    assert run(*next_command) == 0
    for name in ("last", "best"):
        assert same_weights(whole / "checkpoints" / f"{name}.ckpt", last.with_name(f"{name}.ckpt"))
    for name in (history.HISTORY, history.FREQUENCY):
        assert (tmp_path / "run" / name).read_text() == (whole / name).read_text()
    assert metrics_of(tmp_path / "run") == metrics_of(whole)
    assert json.loads((whole / "metrics.json").read_text())["options"]["max_epochs"] == 100
