"""Loggers of curves and pictures. A resumed run continues its curves."""

from __future__ import annotations

import csv
import itertools
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only

from actions.console import is_first_process
from actions.options import Options, as_plain
from actions.run_folder import LOGS
from heterolora.errors import UserError
from heterolora.files import write_text
from heterolora.outside import read_text, reading

_ID = "delete the file to start a new W&B run"
WANDB_PROJECT = "heterolora"  # unless the environment has WANDB_PROJECT


def build_loggers(options: Options, folder: Path, done: int = 0) -> list[Logger]:
    """The logger of `--logger`, which writes into the run folder. The options are logged.

    A resumed run has done `done` optimizer steps; points of later steps are removed. Raises UserError if Weights &
    Biases can't be reached.
    """
    if options.run.logger == "none":
        return []
    if options.run.logger == "tensorboard":  # a resumed run adds an event file, which purges the points of later steps
        logger = TensorBoardLogger(folder, name="", version=LOGS, default_hp_metric=False, purge_step=done or None)
    elif options.run.logger == "csv":
        logger = ContinuedCSVLogger(folder, done)
    else:
        logger = _wandb(folder)
    logger.log_hyperparams(as_plain(options))
    return [logger]


@rank_zero_only
def log_pictures(loggers: Iterable[Logger], pictures: Iterable[Path]) -> None:
    """Log PNG files under their names. The CSV logger ignores them."""
    for picture, logger in itertools.product(pictures, loggers):
        if isinstance(logger, TensorBoardLogger):
            pixels = np.asarray(Image.open(picture).convert("RGB"))  # (height, width, 3)
            logger.experiment.add_image(picture.stem, pixels, dataformats="HWC")
            logger.experiment.flush()
        elif isinstance(logger, WandbLogger):
            logger.log_image(picture.stem, [str(picture)])


class ContinuedCSVLogger(CSVLogger):
    """Keeps the rows of the first `done` steps. Lightning's logger deletes an existing file."""

    def __init__(self, folder: Path, done: int) -> None:
        super().__init__(folder, name="", version=LOGS)
        self.done = done

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            earlier = self._earlier_rows()
            experiment = super().experiment
            for row in earlier:
                experiment.log_metrics(row, step=int(row.pop("step")))
            experiment.save()
        return super().experiment

    def _earlier_rows(self) -> list[dict[str, Any]]:
        path = Path(self.log_dir, "metrics.csv")
        if not self.done or not path.is_file():
            return []
        with reading("the curves", path, "delete the file, or restore the one that the run wrote"):
            with path.open(newline="", encoding="utf-8") as file:
                rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
            for value in (value for row in rows for value in row.values()):
                float(value)  # raises for a damaged file; the text is kept, so that it is written as it was
            return [row for row in rows if float(row["step"]) < self.done]


def _wandb(folder: Path) -> WandbLogger:
    """The id is kept in the run folder, so that a resumed run continues the same W&B run."""
    import wandb

    logs = folder / LOGS
    run_id = None
    if is_first_process():
        id_file = logs / "wandb_id"
        if not id_file.is_file():
            write_text(id_file, secrets.token_hex(4))
        run_id = read_text(id_file, "the id of the W&B run", _ID)
        if not re.fullmatch(r"[\w-]{1,128}", run_id):
            raise UserError(f"'{id_file}' holds no id of a W&B run", _ID)
    logger = WandbLogger(
        name=folder.name,
        save_dir=logs,
        id=run_id,
        project=os.environ.get("WANDB_PROJECT", WANDB_PROJECT),
    )
    try:
        _ = logger.experiment
    except wandb.errors.Error as reason:
        first_line = str(reason).splitlines()[0].rstrip(".")
        raise UserError(
            f"--logger wandb: {first_line}", "run wandb login, set WANDB_MODE=offline, or use another --logger"
        ) from None
    return logger
