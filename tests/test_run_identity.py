"""A run has an id: it is found by it, and no other run touches its folder."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from actions.command.parse import parse_command
from actions.run.in_use import in_use
from actions.run.run_folder import new_folder
from heterolora.common.errors import UserError
from main import main
from model.task.fine_tuning import FineTuning
from tests.quick import some_slow
from tests.test_bad_input import complaint
from tests.world import ROOT, STEADY, World, command, run, same_weights, write_lora


def identity(folder: Path) -> dict[str, object]:
    return json.loads((folder / "run.json").read_text())


def id_in(checkpoint: Path) -> str:
    return torch.load(checkpoint, weights_only=True)["heterolora"]["run"]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def trained(world: World, tmp_path: Path) -> Path:
    """The folder of a finished run of two steps."""
    assert run(*world.training("--project-dir", tmp_path, "--project", "run", "--max-steps", 2)) == 0
    return tmp_path / "run"


class TestId:
    def test_is_in_folder_and_checkpoints(self, world: World, trained: Path, tmp_path: Path) -> None:
        found = identity(trained)
        assert len(found["id"]) == 32
        assert found["finished"] is True
        assert {id_in(trained / "checkpoints" / f"{name}.ckpt") for name in ("last", "best")} == {found["id"]}
        assert run(*world.training("--project-dir", tmp_path, "--project", "run", "--max-steps", 1)) == 0
        assert identity(tmp_path / "run-2")["id"] != found["id"]

    def test_stays_when_the_run_is_resumed(self, trained: Path, tmp_path: Path) -> None:
        before, moved = identity(trained), trained.rename(tmp_path / "moved")
        last = moved / "checkpoints" / "last.ckpt"
        assert run("train", "--resume-training", "--load", last, "--max-steps", 3) == 0
        assert identity(moved) == before
        assert id_in(last) == before["id"]
        assert [path.name for path in tmp_path.iterdir()] == ["moved"]

    def test_a_folder_without_a_run_is_removed(self, capfd, world: World, tmp_path: Path) -> None:
        arguments = world.training("--project-dir", tmp_path, "--dataset-saved-path", tmp_path / "nowhere")
        complaint(capfd, *command(*arguments))
        assert not list(tmp_path.iterdir())

    def test_damaged(self, capfd, trained: Path) -> None:
        (trained / "run.json").write_text("[")
        last = trained / "checkpoints" / "last.ckpt"
        assert "run.json" in complaint(capfd, *command("train", "--resume-training", "--load", last))


class TestNameThatExists:
    """With --project on the command line, the name is not that of another run."""

    def again(self, world: World, tmp_path: Path, *more: object) -> list[str]:
        words = world.training(
            "--project-dir", tmp_path, "--project", "run", "--max-steps", 1, "--logger", "none", *more
        )
        return [*words, *STEADY]

    def test_a_finished_run_is_refused(self, capfd, world: World, trained: Path, tmp_path: Path) -> None:
        before = content(trained)
        said = complaint(capfd, *self.again(world, tmp_path))
        assert f"there is a run {trained} already; give another --project, --overwrite" in said
        assert "--project-suffix, for run-2" in said
        assert content(trained) == before
        assert [path.name for path in tmp_path.iterdir()] == ["run"]

    def test_overwrite_deletes_it(self, capsys, world: World, trained: Path, tmp_path: Path) -> None:
        before = identity(trained)
        (trained / "own.txt").write_text("")
        assert main(self.again(world, tmp_path, "--overwrite")) == 0
        assert identity(trained)["id"] != before["id"]
        assert not (trained / "own.txt").exists()
        assert f"note: the run that was in {trained} is deleted" in capsys.readouterr().out

    def test_overwrite_keeps_what_the_run_reads(self, capfd, world: World, trained: Path, tmp_path: Path) -> None:
        words = ["test", "--load", str(trained), "--project-dir", str(tmp_path), "--project", "run", "--overwrite"]
        said = complaint(capfd, *words)
        assert f"{trained} is to be deleted, and this run reads {trained}" in said
        assert (trained / "checkpoints" / "last.ckpt").is_file()

    def test_suffix(self, world: World, trained: Path, tmp_path: Path) -> None:
        assert main(self.again(world, tmp_path, "--project-suffix")) == 0
        assert identity(tmp_path / "run-2")["id"] != identity(trained)["id"]

    def test_an_unfinished_run_says_how_to_continue(self, capfd, world: World, trained: Path, tmp_path: Path) -> None:
        (trained / "run.json").write_text(json.dumps({**identity(trained), "finished": False}))
        said = complaint(capfd, *self.again(world, tmp_path))
        assert f"there is a run {trained} already, which is not finished" in said
        assert f"continue it with --resume-training --load {trained}, or give" in said

    def test_a_run_without_a_result_is_replaced(self, capsys, world: World, trained: Path, tmp_path: Path) -> None:
        (trained / "run.json").write_text(json.dumps({**identity(trained), "finished": False}))
        shutil.rmtree(trained / "checkpoints")
        assert main(self.again(world, tmp_path)) == 0
        assert f"note: {trained} had no result: it is replaced" in capsys.readouterr().out
        assert identity(trained)["finished"]

    def test_a_folder_that_is_no_run_stays(self, world: World, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "own.txt").write_text("")
        assert main(self.again(world, tmp_path, "--overwrite")) == 0
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["own.txt"]
        assert identity(tmp_path / "run-2")["finished"]

    def test_a_requeued_job_repeats_its_commands(
        self, monkeypatch, world: World, trained: Path, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("SLURM_JOB_ID", "77")
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        assert main(self.again(world, tmp_path)) == 0
        assert identity(tmp_path / "run-2")["finished"]

    def test_an_options_file_repeats_a_run_under_another_name(
        self, world: World, trained: Path, tmp_path: Path
    ) -> None:
        assert main(["train", "--config", str(trained / "config.toml"), "--logger", "none"]) == 0
        assert identity(tmp_path / "run-2")["finished"]


class TestCopiedCheckpoint:
    @pytest.mark.parametrize("beside", some_slow(["nothing", "another run"], quick=["another run"]))
    def test_resumes_into_a_new_folder(self, capsys, world: World, trained: Path, tmp_path: Path, beside: str) -> None:
        elsewhere = tmp_path / "elsewhere"
        if beside == "another run":
            assert run(*world.training("--project-dir", tmp_path, "--project", "elsewhere", "--max-steps", 1)) == 0
        (elsewhere / "adapter").mkdir(parents=True, exist_ok=True)
        (elsewhere / "adapter" / "precious").write_text("mine")
        copied = elsewhere / "checkpoints" / "copied.ckpt"
        copied.parent.mkdir(exist_ok=True)
        shutil.copyfile(trained / "checkpoints" / "last.ckpt", copied)
        before = content(elsewhere)
        capsys.readouterr()
        place = ("--project-dir", tmp_path / "new", "--project", "onward")
        assert run("train", "--resume-training", "--load", copied, *place, "--max-steps", 4) == 0
        assert "continuing in a new folder" in capsys.readouterr().out
        assert content(elsewhere) == before
        new = tmp_path / "new" / "onward"
        assert identity(new)["id"] == id_in(new / "checkpoints" / "last.ckpt") != identity(trained)["id"]
        assert (new / "adapter" / "adapter_config.json").is_file()
        assert tomllib.loads((new / "config.toml").read_text())["project"] == "onward"
        assert run("train", "--resume-training", "--load", trained / "checkpoints" / "last.ckpt", "--max-steps", 4) == 0
        assert same_weights(new / "checkpoints" / "last.ckpt", trained / "checkpoints" / "last.ckpt")

    def test_the_new_run_resumes_before_its_first_step(self, trained: Path, tmp_path: Path) -> None:
        copied = shutil.copyfile(trained / "checkpoints" / "last.ckpt", tmp_path / "copied.ckpt")
        place = ("--project-dir", tmp_path / "new", "--project", "onward")
        assert run("train", "--resume-training", "--load", copied, *place) == 0  # it is at its end
        last = tmp_path / "new" / "onward" / "checkpoints" / "last.ckpt"
        for each in (last, trained / "checkpoints" / "last.ckpt"):
            assert run("train", "--resume-training", "--load", each, "--max-steps", 5) == 0
        assert same_weights(last, trained / "checkpoints" / "last.ckpt")
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["onward"]


class TestLock:
    def test_a_second_resume_is_refused_before_the_model_is_read(
        self, capfd, monkeypatch: pytest.MonkeyPatch, trained: Path
    ) -> None:
        before, last = content(trained), trained / "checkpoints" / "last.ckpt"
        holding = "import sys, time, pathlib\nfrom actions.run.in_use import in_use\n"
        holding += "with in_use(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)\n"
        holder = subprocess.Popen([sys.executable, "-c", holding, trained], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        try:
            assert holder.stdout.readline() == "held\n"
            with monkeypatch.context() as patch:
                patch.setattr("actions.training.experiment.load_config", None)
                line = complaint(capfd, *command("train", "--resume-training", "--load", last, "--max-steps", 4))
            assert f"in use by process {holder.pid} on {socket.gethostname()};" in line
            assert {**content(trained), ".lock": b""} == {**before, ".lock": b""}
        finally:
            holder.send_signal(signal.SIGKILL)
            holder.wait()
        assert run("train", "--resume-training", "--load", last, "--max-steps", 4) == 0  # nobody holds it any more

    def test_is_held_by_a_new_run_and_released_after_a_mistake(self, tmp_path: Path) -> None:
        def mistake() -> None:
            with in_use(tmp_path):
                with pytest.raises(UserError, match="in use by process"), in_use(tmp_path):
                    pass
                raise UserError("a mistake", "none")

        with pytest.raises(UserError, match="a mistake"):
            mistake()
        with in_use(tmp_path):
            pass

    def test_a_folder_that_cannot_be_made(self, capfd, world: World, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
        for name in ("file", "dangling"):
            line = complaint(capfd, *command(*world.training("--project-dir", tmp_path / name)))
            assert "cannot write into" in line


def test_two_folders_of_one_name(tmp_path: Path) -> None:
    """As of two quickstarts in the same second."""
    assert [new_folder(tmp_path / "runs" / "now").name for _ in range(2)] == ["now", "now-2"]


class TestRequeue:
    """The requeued job has the same id and the same command."""

    @pytest.fixture
    def start(self, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        def start(job: str, *more: object, restarts: int = 0) -> int:
            monkeypatch.setenv("SLURM_JOB_ID", job)
            monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
            return run(*world.training("--project-dir", tmp_path, *more))

        return start

    @staticmethod
    def interrupt(folder: Path) -> None:
        """What a run leaves that was killed before its end."""
        (folder / "run.json").write_text(json.dumps({**identity(folder), "finished": False}))
        (folder / "metrics.json").unlink()

    def test_continues_its_own_run(self, capsys, start, tmp_path: Path) -> None:
        assert start("77", "--max-steps", 2) == 0
        folder = tmp_path / "opt_lora_classification_sst2_77"
        self.interrupt(folder)
        assert start("77", "--max-steps", 4, restarts=1) == 0
        assert "requeued: continuing from" in capsys.readouterr().out
        assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4
        assert [path.name for path in tmp_path.iterdir()] == [folder.name]

    def test_continues_a_run_that_it_resumed_from_its_best(self, capfd, start, tmp_path: Path, monkeypatch) -> None:
        assert start("76", "--project", "run", "--max-steps", 2) == 0
        folder = tmp_path / "run"
        first, best = identity(folder), folder / "checkpoints" / "best.ckpt"
        best_of_76 = best.read_bytes()
        resume = ("train", "--resume-training", "--load", best, "--max-steps", 4)
        monkeypatch.setenv("SLURM_JOB_ID", "77")

        def restarted(times: int) -> bool:
            self.interrupt(folder)
            best.write_bytes(best_of_76)
            monkeypatch.setenv("SLURM_RESTART_COUNT", str(times))
            capfd.readouterr()
            assert run(*resume) == 0
            return f"requeued: continuing from {folder / 'checkpoints' / 'last.ckpt'}" in capfd.readouterr().out

        with monkeypatch.context() as patch:  # before it has saved, last.ckpt is that of job 76
            patch.setattr(FineTuning, "on_train_batch_start", self.stop, raising=False)
            assert run(*resume) == 130
        assert not restarted(1)
        assert restarted(2)
        assert restarted(3)
        assert {**identity(folder), "job": "76", "command": first["command"]} == first

    @staticmethod
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    @pytest.mark.parametrize(("job", "finished"), [("77", True), ("76", False)])
    def test_leaves_other_and_finished_runs_alone(self, start, tmp_path: Path, job: str, finished: bool) -> None:
        assert start(job, "--project", "run", "--max-steps", 2) == 0
        if not finished:
            self.interrupt(tmp_path / "run")
        before = content(tmp_path / "run")
        assert start("77", "--project", "run", "--max-steps", 2, restarts=1) == 0
        assert content(tmp_path / "run") == before
        assert (tmp_path / "run-2" / "metrics.json").is_file()

    @pytest.mark.parametrize("form", ["file", "table"])
    def test_commands_differ_by_their_configurations(self, tmp_path: Path, form: str) -> None:
        prints = set()
        for rank in (2, 4):
            path = write_lora(tmp_path / f"r{rank}.toml", r=rank)
            if form == "table":
                path = tmp_path / f"options{rank}.toml"
                path.write_text(f'[lora_config]\ngranularity = "network"\ndefault = {{ r = {rank}, lora_alpha = 8 }}\n')
            arguments = ["train", "--lora-config" if form == "file" else "--config", str(path)]
            prints.add(parse_command(arguments).fingerprint)
        assert len(prints) == 2

    def test_of_a_job_with_several_commands(self, start, tmp_path: Path) -> None:
        """The requeued job repeats its commands from the first one: that of seed 0 was finished, that of 1 was not."""
        for seed in (0, 1):
            assert start("77", "--project", "run", "--max-steps", 2, "--seed", seed) == 0
        self.interrupt(tmp_path / "run-2")
        assert start("77", "--project", "run", "--max-steps", 2, "--seed", 1, restarts=1) == 0
        assert identity(tmp_path / "run-2")["finished"]
        assert not (tmp_path / "run-3").exists()
