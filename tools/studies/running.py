"""Runs jobs: each in a process of its own, several at a time, on this machine or under SLURM."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from actions.result.export import LORA
from actions.run.endings import ENDS_WITH_PARENT
from actions.run.in_use import in_use
from actions.run.run_folder import CHECKPOINTS, write_json
from heterolora.common.errors import UserError
from heterolora.common.files import write_text
from heterolora.common.outside import read_json, reading
from model.task.rows import ROWS
from tools.studies.jobs import PROGRAM, Job

Start = Callable[[Sequence[str], Path], int]

_ENDING = 120  # seconds in which a job that is told to end saves its state
_LONGEST_JOB = 24 * 60  # minutes; submitit's own default is 5
_RUN_AGAIN = "give another --output, or delete it and the run's folder to run the job again"

_SUBMITIT = "expected a machine with SLURM's commands, and the parameters of submitit's AutoExecutor"

_running: set[subprocess.Popen[bytes]] = set()


@dataclass(frozen=True)
class JobRecord:
    """How a job ended. `error` is the last line of its output if it failed."""

    name: str
    code: int
    seconds: float  # wall clock, with the start of each process that ran a part of it
    error: str = ""
    digest: str = ""  # of the job; older versions did not record it

    @property
    def failed(self) -> bool:
        return self.code != 0


def record_of(job: Job, folder: Path) -> JobRecord | None:
    """The record of a job that has ended well, or None."""
    path = folder / f"{job.name}.json"
    if not (path.is_file() and (job.results / job.result).is_file()):
        return None
    record = _read(path)
    if record.failed:
        return None
    if record.digest not in ("", job.digest):
        raise UserError(f"{path} is of a run with other options than those of the study file", _RUN_AGAIN)
    return record


def _read(path: Path) -> JobRecord:
    with reading("the record", path, _RUN_AGAIN):
        return JobRecord(**read_json(path, "the record", _RUN_AGAIN))


def start_process(arguments: Sequence[str], log: Path) -> int:
    """Run `python` with these arguments, append its output to `log`, and return its exit code."""
    with log.open("ab") as output:
        command = [sys.executable, *arguments]
        process = subprocess.Popen(
            command,
            cwd=PROGRAM,
            env={**os.environ, ENDS_WITH_PARENT: "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
        _running.add(process)
        try:
            return process.wait()
        finally:
            _running.discard(process)


def run_job(job: Job, folder: Path, start: Start = start_process) -> JobRecord:
    """Run a job, and write its output and its record into `folder`. A run that was killed, or that stopped after a
    part of it, is continued. A run with other options, or that is beyond the job's part, starts again. Raises UserError
    if another process has the folder of the run.
    """
    last = job.folder / CHECKPOINTS / "last.ckpt"
    started = folder / f"{job.folder.name}.started.json"
    if job.folder.is_dir():
        with in_use(job.folder, patience=_ENDING):  # by a job whose study was killed just now
            pass
        if not (last.is_file() and _continues(job, started)):
            shutil.rmtree(job.folder, ignore_errors=True)  # the run would get another name beside it
            for path in (folder / f"{job.folder.name}.json", *folder.glob(f"{job.folder.name}.to*.json")):
                path.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(started, {"digest": job.digest, "share": job.share})
    record_path = folder / f"{job.name}.json"
    continued = last if last.is_file() else None
    earlier = _read(record_path).seconds if continued and record_path.is_file() else 0.0  # of this job, interrupted
    log = folder / f"{job.name}.log"
    said_before = log.stat().st_size if log.is_file() else 0
    began = time.perf_counter()
    code = start(job.arguments(continued), log)
    seconds = earlier + time.perf_counter() - began
    if code == 0 and job.results != job.folder:
        for name in (ROWS, LORA, job.result):
            write_text(job.results / name, (job.folder / name).read_text(encoding="utf-8"))
    error = "" if code == 0 else _last_line(log, said_before)
    record = JobRecord(job.name, code, seconds, error, job.digest)
    write_json(record_path, asdict(record))
    return record


def check_unfinished(job: Job, folder: Path) -> None:
    """Raise UserError if a part of a run is missing, and the run has gone on to its end without it."""
    whole = replace(job, share=1.0, name=job.folder.name)
    if job.share < 1 and record_of(whole, folder) is not None:
        raise UserError(
            f"{job.folder} is finished, and has no result after {job.share:.0%} of it",
            "give another --output, or the study's former tuning and number of learning rates",
        )


def _continues(job: Job, started: Path) -> bool:
    """Whether the checkpoint is of this job, by what was last started. Older versions did not record that."""
    if not started.is_file():
        return True
    with reading("the record", started, _RUN_AGAIN):
        found = read_json(started, "the record", _RUN_AGAIN)
        return found["digest"] == job.digest and found["share"] <= job.share


def _last_line(log: Path, start: int) -> str:
    """The last error in a log from the byte `start` on, or its last line."""
    text = log.read_bytes()[start:].decode("utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or ["no output"])[-1][:300]


def run_here(jobs: Sequence[Job], folder: Path, workers: int, start: Start = start_process) -> Iterator[JobRecord]:
    """Run jobs in `workers` processes at a time; yields records as they end."""
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(run_job, job, folder, start) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except SystemExit:  # of SIGTERM, which the running jobs do not get: they save, and continue at the next start
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(_running):
                process.terminate()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)  # after Ctrl-C the running jobs end by themselves


def _reason(failure: BaseException) -> str:
    """What a failed job of submitit says: the last line of the trace, which is between two lines of dashes."""
    _, *traces = re.split(r"^-{9,}$", str(failure), flags=re.MULTILINE)
    lines = (traces[0] if traces else str(failure)).strip().splitlines()
    return lines[-1].strip()[:300] if lines else type(failure).__name__


def run_submitted(
    jobs: Sequence[Job], folder: Path, workers: int, cluster: str, options: dict[str, Any]
) -> Iterator[JobRecord]:
    """Run jobs through submitit: `slurm` as one job array of at most `workers` at a time, `local` as processes, of
    which the next `workers` start when all before have ended.
    """
    try:
        import submitit
    except ImportError:
        raise UserError(f"--executor {cluster} needs the package submitit", "pip install submitit") from None
    values = {"name": "heterolora-study", "timeout_min": _LONGEST_JOB, **options}
    if cluster == "slurm":
        values["slurm_array_parallelism"] = workers
    try:
        executor = submitit.AutoExecutor(folder / "submitit", cluster=cluster)
        executor.update_parameters(**values)
    except (RuntimeError, NameError, AssertionError, TypeError, ValueError) as error:  # of submitit, about its input
        found = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"submitit refuses --executor {cluster}: {found[:300]}", _SUBMITIT) from error
    size = len(jobs) if cluster == "slurm" else workers
    for start in range(0, len(jobs), size):
        with executor.batch():
            submitted = {executor.submit(run_job, job, folder): job.name for job in jobs[start : start + size]}
        for job in submitit.helpers.as_completed(list(submitted)):
            failure = job.exception()  # of the job itself, such as a limit of the cluster; not of the command in it
            yield (job.result() if failure is None else JobRecord(submitted[job], 1, 0.0, _reason(failure)))
