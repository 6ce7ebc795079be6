"""Loggers of curves and pictures. A resumed run continues its curves."""

from __future__ import annotations

import csv
import itertools
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only

from actions.run.run_folder import LOGS
from actions.training.trackers import TRACKERS, TrackioLogger
from heterolora.common.outside import reading
from options.every import Options, as_plain


def build_loggers(options: Options, folder: Path, done: int = 0) -> list[Logger]:
    """The logger of `--logger`, which writes into the run folder. The options are logged.

    A resumed run has done `done` optimizer steps. Points of later steps are removed from files of TensorBoard and CSV;
    a tracker keeps them. Raises UserError if a tracker can't be reached.
    """
    name = options.run.logger
    if name == "none":
        return []
    logger: Logger
    if name == "tensorboard":  # a resumed run adds an event file, which purges the points of later steps
        logger = _TensorBoardLogger(folder, name="", version=LOGS, default_hp_metric=False, purge_step=done or None)
    elif name == "csv":
        logger = ContinuedCSVLogger(folder, done)
    else:
        logger = TRACKERS[name](folder, done > 0)
    logger.log_hyperparams(as_plain(options))
    return [logger]


@rank_zero_only
def log_pictures(loggers: Iterable[Logger], pictures: Iterable[Path]) -> None:
    """Log PNG files under their names. The CSV logger ignores them."""
    for picture, logger in itertools.product(pictures, loggers):
        if isinstance(logger, _TensorBoardLogger | TrackioLogger):
            logger.log_picture(picture)
        elif isinstance(logger, WandbLogger):
            logger.log_image(picture.stem, [str(picture)])
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_artifact(logger.run_id, str(picture))


@contextmanager
def _unless_deleted(folder: str) -> Iterator[None]:
    """Pass over an error if the folder is gone: `RunCheckpoints` saves the weights, and then ends the run."""
    try:
        yield
    except (FileNotFoundError, ValueError):  # Lightning makes a ValueError of any error of TensorBoard
        if os.path.isdir(folder):
            raise


class _TensorBoardLogger(TensorBoardLogger):
    """Raises no error if its folder was deleted."""

    @rank_zero_only
    def log_metrics(self, *args: Any, **more: Any) -> None:
        with _unless_deleted(self.log_dir):
            super().log_metrics(*args, **more)

    @rank_zero_only
    def save(self) -> None:
        with _unless_deleted(self.log_dir):
            super().save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        with _unless_deleted(self.log_dir):
            super().finalize(status)

    def log_picture(self, picture: Path) -> None:
        pixels = np.asarray(Image.open(picture).convert("RGB"))  # (height, width, 3)
        with _unless_deleted(self.log_dir):
            self.experiment.add_image(picture.stem, pixels, dataformats="HWC")
            self.experiment.flush()


class ContinuedCSVLogger(CSVLogger):
    """Keeps the rows of the first `done` steps. Lightning's logger deletes an existing file."""

    def __init__(self, folder: Path, done: int) -> None:
        super().__init__(folder, name="", version=LOGS)
        self.done, self._continues = done, done > 0

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._continues:
            self._continues = False
            earlier = self._earlier_rows()
            experiment = super().experiment
            for row in earlier:
                experiment.log_metrics(row, step=row.pop("step"))
            experiment.save()
        return super().experiment

    @rank_zero_only
    def save(self) -> None:
        with _unless_deleted(self.log_dir):
            super().save()

    def _earlier_rows(self) -> list[dict[str, Any]]:
        path = Path(self.log_dir, "metrics.csv")
        if not path.is_file():
            return []
        with reading("the curves", path, "delete the file, or restore the one that the run wrote"):
            with path.open(newline="", encoding="utf-8") as file:
                rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
            for value in (value for row in rows for value in row.values()):
                float(value)  # raises for a damaged file; the text is kept, so that it is written as it was
            return [{**row, "step": step} for row in rows if (step := int(row["step"])) < self.done]
