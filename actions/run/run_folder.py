"""The folder of one run: its name, its files, and the identity of the run.

`run.json` is the first file of a folder. It holds the run's id, which its checkpoints record too. So a run is found by
its id, and never by the name of a folder.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actions.command.configurations import KEYS, UNIFORM
from actions.run.console import is_first_process, note
from actions.run.in_use import LOCK, in_use
from dataset.reading import own
from heterolora.common.checks import present
from heterolora.common.errors import UserError
from heterolora.common.files import check_writable, remove_leftovers, write_text, write_toml
from heterolora.common.outside import read_json
from heterolora.elements.config import ElementConfig
from heterolora.elements.element import Kind
from options.every import Options, as_plain, flat

if TYPE_CHECKING:
    from actions.command.request import Request
    from model.checkpoint import Checkpoint


CHECKPOINTS, CONFIG, METRICS, PARAMETERS, LOGS = "checkpoints", "config.toml", "metrics.json", "parameters.json", "logs"
RUN, SCORES, ADAPTER, LORA, SHORTCUT = "run.json", "scores.toml", "adapter", "lora.toml", "shortcut.toml"
SAMPLES = "samples.md"


@dataclass(frozen=True)
class Run:
    """A run and its folder. `id` is None if a version without ids started the run."""

    folder: Path
    id: str | None
    command: str | None = None  # fingerprint of the command that starts or resumes it


@dataclass(frozen=True)
class _Identity:
    """The contents of `run.json`."""

    id: str
    job: str | None = None  # the SLURM job that started the run, or resumed it and saved `last.ckpt`
    command: str | None = None  # fingerprint of the command of this job
    finished: bool = False
    trials: Sequence[Mapping[str, Any]] = ()  # of learning rates

    @classmethod
    def read(cls, folder: Path) -> _Identity | None:
        """The identity of the run in this folder; None if it has no `run.json`."""
        path, expected = folder / RUN, "restore the file, or start a new run"
        if not path.is_file():
            return None
        values = read_json(path, "the identity of the run", expected)
        if not isinstance(values.get("id"), str):
            raise UserError(f"{path} holds no id", expected)
        finished, trials = values.get("finished") is True, values.get("trials", ())
        return cls(values["id"], values.get("job"), values.get("command"), finished, trials)

    def write(self, folder: Path) -> None:
        write_json(folder / RUN, asdict(self))


@contextmanager
def open_run(request: Request) -> Iterator[Run]:
    """Yield the run, in a folder that no other process uses until the block ends.

    A resumed run continues in its own folder. Any other run gets a new folder. A number is appended to the name if that
    folder exists, unless the command line names the run: see `_make_free`. A new folder is deleted again if the block
    writes nothing into it. Only the first process creates, locks and deletes; `RunCheckpoints` broadcasts its result.
    """
    own = None if request.resumed is None else folder_of(request.resumed)
    if not is_first_process():
        yield Run(own or named_folder(request.options), None)
        return
    check_writable(own or named_folder(request.options))
    if own is None and request.names_run:
        _make_free(named_folder(request.options), request)
    folder = own or _new_folder(request.options)
    try:
        with in_use(folder):
            for place in (folder, folder / CHECKPOINTS):
                remove_leftovers(place, exclusive=True)
            if own is None:
                _Identity(uuid.uuid4().hex, os.environ.get("SLURM_JOB_ID"), request.fingerprint).write(folder)
            identity = _mark(folder, finished=False)
            yield Run(folder, None if identity is None else identity.id, request.fingerprint)
            _mark(folder, finished=True)
    finally:
        if own is None:
            _delete_if_unused(folder)


def folder_of(checkpoint: Checkpoint) -> Path | None:
    """The run folder of a checkpoint; None if the checkpoint was copied out of it."""
    folder = checkpoint.path.resolve().parent.parent
    identity, recorded = _Identity.read(folder), checkpoint.record.run
    if recorded is not None:
        return folder if identity is not None and identity.id == recorded else None
    made_without_ids = identity is None and (folder / CONFIG).is_file() and checkpoint.path.parent.name == CHECKPOINTS
    return folder if made_without_ids else None


def unfinished_run(values: Mapping[str, Any], fingerprint: str, job: str) -> Path | None:
    """The last checkpoint of the unfinished run that this SLURM job started or resumed with the same command.

    `values`: those of its options.
    """
    paths = sorted((values["project_dir"] / (values["project"] or "any")).parent.glob(f"*/{RUN}"))
    if values["resume_training"] and values["load"] is not None:  # a resumed run stays in its folder
        paths.append(Path(os.path.realpath(values["load"])).parent.parent / RUN)
    for path in paths:
        last = path.parent / CHECKPOINTS / "last.ckpt"
        with suppress(UserError):  # a damaged file of another run
            found = _Identity.read(path.parent)
            ours = found is not None and (found.job, found.command, found.finished) == (job, fingerprint, False)
            if ours and last.is_file():
                return last
    return None


def named_folder(options: Options) -> Path:
    """`--project`, or <model>_<task>_<dataset>_<time>. Under SLURM the time is the job id."""
    when = os.environ.get("SLURM_JOB_ID") or time.strftime("%Y%m%d-%H%M%S")
    parts = (options.model.strip("/"), str(options.task), own.name_of(options.dataset), when)
    name = "_".join(parts).replace("/", "-")
    return options.run.project_dir / (options.run.project or name)


def _make_free(folder: Path, request: Request) -> None:
    """Delete the run in a folder that a new run is to have, with --overwrite or if it came to nothing.

    Raises UserError for any other run, unless --project-suffix gives the new one another name.
    """
    run = request.options.run
    if run.overwrite and run.project_suffix:
        raise UserError("--overwrite and --project-suffix exclude each other", "give one of them")
    is_run = (folder / RUN).is_file() or (folder / CONFIG).is_file()
    if run.project_suffix or not is_run:
        return
    is_stopped, last = is_finished(folder) is False, folder / CHECKPOINTS / "last.ckpt"
    if not run.overwrite and (last.is_file() or not is_stopped):
        state, resume = "", ""
        if is_stopped:
            state, resume = ", which is not finished", f"continue it with --resume-training --load {folder}, or "
        ways = f"another --project, --overwrite, which deletes it, or --project-suffix, for {folder.name}-2"
        raise UserError(f"there is a run {folder} already{state}", f"{resume}give {ways}")
    if read := _within(folder, request.options):
        raise UserError(f"{folder} is to be deleted, and this run reads {read}", "give another --project")
    with in_use(folder):
        note(f"the run that was in {folder} is deleted" if run.overwrite else f"{folder} had no result: it is replaced")
    shutil.rmtree(folder)


def _within(folder: Path, options: Options) -> str | None:
    """A file in the folder that an option names."""
    texts = [str(value) for value in flat(options).values() if isinstance(value, str | Path)]
    named = (text for text in texts if os.path.exists(text))
    return next((text for text in named if Path(text).resolve().is_relative_to(folder.resolve())), None)


def _new_folder(options: Options) -> Path:
    folder = named_folder(options)
    try:
        return new_folder(folder)
    except OSError as error:
        raise UserError(
            f"the run folder {folder} cannot be made ({error.strerror})", "give another --project-dir or --project"
        ) from None


def new_folder(folder: Path) -> Path:
    """Make a folder with this name, or with a number after it if there is one already."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    numbers = itertools.count(2)
    made = folder
    while True:
        try:
            made.mkdir()
            return made
        except FileExistsError:
            made = folder.with_name(f"{folder.name}-{next(numbers)}")


def _mark(folder: Path, finished: bool) -> _Identity | None:
    identity = _Identity.read(folder)
    if identity is not None and identity.finished != finished:
        identity = replace(identity, finished=finished)
        identity.write(folder)
    return identity


def is_finished(folder: Path) -> bool | None:
    """Whether the run in a folder has come to its end. None if a version without `run.json` started it."""
    identity = _Identity.read(folder)
    return None if identity is None else identity.finished


def measured_checkpoint(folder: Path) -> str | None:
    """The name of the file whose weights `metrics.json` is of; None if there is no such file yet."""
    if not (folder / METRICS).is_file():
        return None
    found = read_json(folder / METRICS, "the metrics file", "expected the file that the run wrote").get("checkpoint")
    return Path(found).name if isinstance(found, str) else None


def record_trials(folder: Path, trials: Sequence[Mapping[str, Any]]) -> None:
    """Add the trials of learning rates to `run.json`."""
    replace(present(_Identity.read(folder)), trials=trials).write(folder)


def claim(run: Run) -> None:
    """Record in `run.json` that this SLURM job continues the run. If the job is requeued, it resumes from `last.ckpt`.

    Call it once this job has saved `last.ckpt`. Before, that file may be of later steps than the resumed checkpoint.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or not is_first_process() or (identity := _Identity.read(run.folder)) is None:
        return
    if (identity.job, identity.command) != (job, run.command):
        replace(identity, job=job, command=run.command).write(run.folder)


def _delete_if_unused(folder: Path) -> None:
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= {RUN, LOCK}:
        shutil.rmtree(folder)


def write_json(path: Path, values: Any) -> None:
    write_text(path, json.dumps(values, indent=2) + "\n")


def write_config(folder: Path, action: str, options: Options, configs: Mapping[Kind, ElementConfig]) -> None:
    """Write the resolved options and configurations. `python -m main <action> --config config.toml` repeats the run."""
    tables = {name: configs[kind].to_document() for name, kind in KEYS.items() if kind in configs}
    plain = {name: value for name, value in as_plain(options).items() if "lora" not in configs or name not in UNIFORM}
    write_toml(folder / CONFIG, {"action": action, **plain, **tables})
