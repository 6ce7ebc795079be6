"""Loggers of experiment trackers: Weights & Biases, MLflow and Trackio. A resumed run continues its run there."""

from __future__ import annotations

import io
import os
import re
import secrets
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, MLFlowLogger, WandbLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only

from actions.run.console import is_first_process
from actions.run.run_folder import LOGS
from heterolora.common.checks import present
from heterolora.common.errors import UserError
from heterolora.common.files import write_text
from heterolora.common.outside import read_text

PROJECT = "heterolora"  # unless the tracker's own variable of the environment names another
_ELSE = "or use another --logger"
_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"


# ---- logins, which are checked before a model is loaded


def check_login(logger: str) -> None:
    """Raise UserError if `--logger` is a tracker that refuses this user or does not answer."""
    if is_first_process() and (check := _LOGINS.get(logger)) is not None:
        check()


def _check_wandb() -> None:
    import wandb

    if wandb.setup().settings.mode in ("offline", "disabled", "dryrun"):
        return
    # A terminal is asked for a key. Elsewhere the error says all, and W&B's own lines before it would repeat it.
    with nullcontext() if sys.stdin.isatty() else redirect_stderr(io.StringIO()):
        try:
            wandb.login(verify=True)
        except (wandb.errors.Error, ValueError, OSError) as reason:
            raise _refused_by_wandb(reason) from None


def _refused_by_wandb(reason: Exception) -> UserError:
    advice = f"run wandb login, set WANDB_MODE=offline, {_ELSE}"
    return UserError(f"--logger wandb: {_first_line(reason)}", advice)


def _check_mlflow() -> None:
    """Asks a server for its experiments. Files and databases need no login."""
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not address.startswith(("http", "databricks")):
        return
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        with _variable(_RETRIES, os.environ.get(_RETRIES, "1")):
            mlflow.MlflowClient(address).search_experiments(max_results=1)
    except (MlflowException, OSError) as reason:
        raise _refused_by_mlflow(address, reason) from None


def _refused_by_mlflow(address: str, reason: Exception) -> UserError:
    advice = f"check MLFLOW_TRACKING_URI and the login, {_ELSE}"
    return UserError(f"--logger mlflow: {address}: {_first_line(reason)}", advice)


def _check_trackio() -> None:
    """Only a space of the hub needs a login."""
    from huggingface_hub import get_token

    if (space := os.environ.get("TRACKIO_SPACE_ID")) and get_token() is None:
        found = f"--logger trackio: nobody is logged in who can write to the space {space}"
        raise UserError(found, f"run hf auth login, unset TRACKIO_SPACE_ID, {_ELSE}")


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """Set a variable of the environment for a while."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})


_LOGINS: Mapping[str, Callable[[], None]] = {
    "wandb": _check_wandb, "mlflow": _check_mlflow, "trackio": _check_trackio
}  # fmt: skip


# ---- runs


def _wandb(folder: Path, resumed: bool) -> WandbLogger:
    """The id is kept in the run folder, so that a resumed run continues the same W&B run."""
    import wandb

    id_file = folder / LOGS / "wandb_id"
    run_id = None
    if is_first_process():
        if not id_file.is_file():
            write_text(id_file, secrets.token_hex(4))
        run_id = _read_id(id_file)
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    logger = WandbLogger(name=folder.name, save_dir=folder / LOGS, id=run_id, project=project)
    try:
        _ = logger.experiment
    except wandb.errors.Error as reason:
        raise _refused_by_wandb(reason) from None
    return logger


class _ContinuedMLFlowLogger(MLFlowLogger):
    """Logs options only once: MLflow refuses another value, and a resumed run may have changed some."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._continues = more.get("run_id") is not None

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        if not self._continues:
            super().log_hyperparams(params)


def _mlflow(folder: Path, resumed: bool) -> MLFlowLogger:
    """Log to MLFLOW_TRACKING_URI, by default to a database that all runs of the project folder share.

    The id is kept in the run folder, so that a resumed run continues the same MLflow run.
    """
    from mlflow.exceptions import MlflowException

    id_file = folder / LOGS / "mlflow_id"
    given = os.environ.get("MLFLOW_TRACKING_URI")
    address = given or f"sqlite:///{folder.parent.resolve() / 'mlflow.db'}"
    artifacts = None if given else str(folder.parent.resolve() / "mlartifacts")
    run_id = _read_id(id_file) if is_first_process() and id_file.is_file() else None
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    try:
        logger = _ContinuedMLFlowLogger(
            experiment, folder.name, address, artifact_location=artifacts, run_id=run_id, synchronous=True
        )
        _ = logger.experiment
    except (MlflowException, OSError) as reason:
        raise _refused_by_mlflow(address, reason) from None
    if is_first_process() and run_id is None:
        write_text(id_file, present(logger.run_id))
    return logger


class TrackioLogger(Logger):
    """Trackio has the functions of wandb, and Lightning has no logger for it."""

    def __init__(self, folder: Path, resumed: bool) -> None:
        super().__init__()
        self._folder, self._resume = folder, "allow" if resumed else "never"
        self._run: Any = None

    @property
    def name(self) -> str:
        return os.environ.get("TRACKIO_PROJECT", PROJECT)

    @property
    def version(self) -> str:
        return self._folder.name

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._run is None:
            import trackio

            self._run = trackio.init(
                self.name, self.version, resume=self._resume, embed=False, auto_log_gpu=False, auto_log_cpu=False
            )
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        self.experiment.config.update(params if isinstance(params, dict) else vars(params))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def log_picture(self, picture: Path) -> None:
        import trackio

        self.experiment.log({picture.stem: trackio.Image(picture)})


def _trackio(folder: Path, resumed: bool) -> TrackioLogger:
    logger = TrackioLogger(folder, resumed)
    try:
        _ = logger.experiment
    except (OSError, ValueError) as reason:
        raise UserError(f"--logger trackio: {_first_line(reason)}", f"see Trackio's documentation, {_ELSE}") from None
    return logger


# Name -> function of the run folder and whether the run continues.
TRACKERS: Mapping[str, Callable[[Path, bool], Logger]] = {"wandb": _wandb, "mlflow": _mlflow, "trackio": _trackio}


def _read_id(file: Path) -> str:
    """The id of the tracker's run. Raises UserError if the file holds none."""
    expected = "delete the file to start a new run of the tracker"
    run_id = read_text(file, "the id of the tracker's run", expected)
    if not re.fullmatch(r"[\w-]{1,128}", run_id):
        raise UserError(f"'{file}' holds no id of a tracker's run", expected)
    return run_id


def _first_line(reason: Exception) -> str:
    return (str(reason).splitlines() or [type(reason).__name__])[0].rstrip(".")
