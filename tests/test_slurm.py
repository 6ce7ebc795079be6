"""Jobs of a real SLURM on this machine (`make test-slurm`): the script of the documentation, requeued, and a study."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from heterolora.choosing.history import HISTORY
from main import main
from tests.slurm import Cluster, missing, wait_for
from tests.test_docs import Stage, code_blocks
from tests.test_processes import steps_of
from tests.test_study import MINIMAL, rows, write
from tests.together import together
from tests.world import ROOT, STEADY, World, same_weights

LONGEST = 1500  # seconds of a job on a slow machine

pytestmark = [
    pytest.mark.timeout(4 * LONGEST),
    pytest.mark.slurm,
    pytest.mark.skipif(bool(missing()), reason=f"SLURM is not installed: {', '.join(missing())} not found"),
]

SMALL = ("--dataset-saved-path", "rte", "--accelerator", "cpu", "--logger", "none", "--max-token-len", "32", *STEADY)
SEARCH = ("--realloc-N", "50", "--imp-limit-test-batches", "2")
TWO_TASKS = ("--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=1")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    started = Cluster(tmp_path_factory.mktemp("slurm"))
    yield started
    started.stop()


@pytest.fixture(scope="module")
def stage(world: World, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("stage"), world)


def script(stage: Stage, name: str, *options: str) -> Path:
    """The script of the documentation with this Python, for one node, and with options for a small model."""
    (text,) = (block for block in code_blocks("bash") if "#SBATCH" in block)
    text = replaced(text, ".venv/bin/activate", f"{sys.prefix}/bin/activate")
    text = replaced(text, "--num-nodes 2 --num-devices 4", "--num-nodes 1 --num-devices 2")
    text = replaced(text, "--auto-requeue", " ".join(("--auto-requeue", *options)))
    path = stage.folder / f"{name}.sh"
    path.write_text(text)
    return path


def run_in(folder: Path, arguments: Sequence[str]) -> None:
    os.chdir(folder)
    assert main(arguments) == 0


class Job:
    """A job, which has an hour."""

    def __init__(self, cluster: Cluster, path: Path, *options: str) -> None:
        self.cluster, self.output = cluster, path.with_suffix(".out")
        more = (f"--output={self.output}", "--open-mode=append", "--time=60")
        self.id = cluster.submit(path, *options, *more, cwd=path.parent, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")

    @property
    def facts(self) -> dict[str, str]:
        return self.cluster.job(self.id)

    @property
    def has_ended(self) -> bool:
        return self.facts.get("JobState", "PENDING") not in ("PENDING", "RUNNING", "COMPLETING")

    @property
    def minutes(self) -> int:
        """The minutes that it has run."""
        hours, minutes, _ = map(int, self.facts["RunTime"].split(":"))
        return 60 * hours + minutes

    @property
    def said(self) -> str:
        return self.output.read_text() if self.output.is_file() else ""

    def set_limit(self, minutes: int, *more: str) -> None:
        self.cluster.ask("scontrol", "update", f"JobId={self.id}", f"TimeLimit={minutes}", *more)

    def wait(self, condition: Callable[[], bool]) -> None:
        wait_for(condition, "it did not happen", lambda: f"{self.facts}\n{self.said}\n{self.cluster.logs()}", LONGEST)


def replaced(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, old
    return text.replace(old, new)


def test_a_job_at_its_time_limit_is_requeued_and_goes_on(cluster: Cluster, stage: Stage) -> None:
    """SLURM sends SIGUSR1 at least 120 seconds before the end, as the script asks."""
    options = stage.folder / "job.toml"
    options.write_text("max_epochs = 1000000\n")
    job_script = script(stage, "job", *SMALL, *SEARCH, "--config", options.name)
    job = Job(cluster, job_script, *TWO_TASKS)
    job.wait(lambda: any(steps_of(last) > 50 for last in stage.folder.glob(f"runs/*_{job.id}/checkpoints/last.ckpt")))
    job.set_limit(job.minutes + 3)  # now that it trains, however slow the machine is
    job.wait(lambda: {"Restarts": "1", "JobState": "PENDING"}.items() <= job.facts.items())
    (run,) = stage.folder.glob(f"runs/*_{job.id}")
    last = run / "checkpoints" / "last.ckpt"
    steps = steps_of(last) + 30
    options.write_text(f"max_epochs = 1000000\nmax_steps = {steps}\n")
    job.set_limit(60, "StartTime=now")  # a requeued job waits for two minutes
    job.wait(lambda: job.has_ended)
    assert (job.facts["JobState"], job.facts["Restarts"]) == ("COMPLETED", "1"), job.said
    assert len(list(stage.folder.glob("runs/*"))) == 1
    assert job.said.count(f"requeued: continuing from {last.relative_to(stage.folder)}") == 1
    assert "Traceback" not in job.said

    words = re.search(r"srun (python -m main .*?) --num-nodes", job_script.read_text().replace("\\\n", " ")).group(1)
    two = f"--num-devices 2 --strategy ddp --max-epochs 1000000 --max-steps {steps} --project whole"
    together(2, run_in, stage.folder, (*shlex.split(f"{words} {two}")[3:], *SMALL, *SEARCH))
    whole = stage.folder / "runs" / "whole"
    for name in ("last", "best"):
        assert same_weights(last.with_name(f"{name}.ckpt"), whole / "checkpoints" / f"{name}.ckpt")
    assert (run / HISTORY).read_text() == (whole / HISTORY).read_text()


def test_a_cancelled_job_is_not_requeued(cluster: Cluster, stage: Stage) -> None:
    job = Job(cluster, script(stage, "cancelled", *SMALL, *SEARCH, "--max-epochs", "1000000"), *TWO_TASKS)
    job.wait(lambda: any(steps_of(last) > 0 for last in stage.folder.glob(f"runs/*_{job.id}/checkpoints/last.ckpt")))
    cluster.ask("scancel", job.id)
    job.wait(lambda: job.has_ended)
    assert (job.facts["JobState"], job.facts["Restarts"]) == ("CANCELLED", "0"), job.said
    assert job.said.count("stopped; to continue: python -m main train-dyrealloc") == 1
    assert "Traceback" not in job.said


def test_a_study_as_a_job_array(cluster: Cluster, world: World, tmp_path: Path) -> None:
    one_rate = MINIMAL.replace("seeds = [0, 1]", "seeds = [0]").replace("[1e-3, 1e-2]", "[1e-2]")
    command = (sys.executable, "tools/study.py", write(tmp_path, world, one_rate), "--output", tmp_path / "out")
    slurm = ("--executor", "slurm", "--workers", 2, "--slurm", "cpus_per_task=1")
    done = cluster.run(*command, *slurm, cwd=ROOT, seconds=2 * LONGEST, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{cluster.logs()}"
    found = rows(tmp_path / "out")
    assert {row["arm"] for row in found} == {"uniform", "grad_norm"}
    assert all(float(row["seconds"]) > 0 for row in found)
