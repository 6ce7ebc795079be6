"""What training costs: seconds in all, seconds of a step, tokens in a second, and the peak of memory."""

from __future__ import annotations

import resource
import sys
import time
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Timer

from heterolora.common.distributed import sum_over_ranks
from model.lightning import window_ends


class Resources(Timer):
    """Measures training on the first process. A resumed run counts the seconds before it too.

    Callbacks that follow it in the list work inside a step.
    """

    def __init__(self) -> None:
        super().__init__()
        self._steps: list[float] = []
        self._window = 0.0  # seconds of the accumulation window so far
        self._batch_start = 0.0
        self._tokens = 0  # of this process; of all processes once training has ended
        self._device = torch.device("cpu")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._device = trainer.strategy.root_device

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._batch_start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self._window += time.perf_counter() - self._batch_start
        self._tokens += batch["tokens"]
        if window_ends(trainer):
            self._steps.append(self._window)
            self._window = 0.0

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._tokens = int(sum_over_ranks(torch.tensor(self._tokens, device=self._device)))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raise TypeError or ValueError if the seconds in the state are not a number."""
        super().load_state_dict(state_dict)
        float(self.time_elapsed("train"))

    def as_dict(self) -> dict[str, float | int | None]:
        """`train_seconds` with validations, the median `step_seconds`, `tokens_per_second` of all processes in steps,
        without padding, and `peak_memory_bytes`: of the GPU, or the resident set of the process.
        """
        return {
            "train_seconds": self.time_elapsed("train"),
            "step_seconds": median(self._steps) if self._steps else None,
            "tokens_per_second": self._tokens / sum(self._steps) if self._steps else None,
            "peak_memory_bytes": _peak_memory(self._device),
        }


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
