"""The training state of a resumed run: a damaged one is a mistake of the user, and any other exception is a bug."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException

from heterolora.common.errors import UserError
from model.task.fine_tuning import task_of

_OF_DAMAGE = (LookupError, TypeError, ValueError, AttributeError, MisconfigurationException)


@contextmanager
def loading_from(path: Path | None) -> Iterator[None]:
    """Raise UserError for an exception of the block that comes from the loading of the state in `path`."""
    try:
        yield
    except _OF_DAMAGE as error:
        if path is None or not _is_of_loading(error):
            raise
        found = f"{path} cannot be resumed: its training state is damaged ({type(error).__name__}: {error})"
        raise UserError(found, "resume from another checkpoint of this run") from error


def _is_of_loading(error: Exception) -> bool:
    """Whether a function that loads a state has raised it. Lightning loads between hooks, so the names tell."""
    names = (frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__))
    return any("load_state_dict" in name or name.startswith("restore_") for name in names)


class CheckForm(pl.Callback):
    """Raises TypeError if values of a loaded state have other types than this run's own.

    Lightning and torch take them as they are, and would fail later, where the file is no longer known.
    """

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        built = task_of(pl_module).configure_optimizers()
        _check_steps(built["optimizer"], checkpoint)
        own = {
            "loops": {"fit_loop": trainer.fit_loop.state_dict()},
            "optimizer_states": [built["optimizer"].state_dict()],
            "lr_schedulers": [built["lr_scheduler"]["scheduler"].state_dict()],
        }
        check_form(own, checkpoint)


def _check_steps(own: torch.optim.Optimizer, checkpoint: Mapping[str, Any]) -> None:
    """Raise ValueError if the optimizer or the schedule has lost what it knew of the steps before."""
    for name in ("optimizer_states", "lr_schedulers"):
        if len(checkpoint[name]) != 1:
            raise ValueError(f"{name} has {len(checkpoint[name])} entries")
    if not isinstance(own, torch.optim.Adam):
        return
    state, step = checkpoint["optimizer_states"][0]["state"], checkpoint["global_step"]
    if step and not state:
        raise ValueError(f"the optimizer has no state after {step} steps")
    if not all(each.keys() >= {"step", "exp_avg", "exp_avg_sq"} for each in state.values()):
        raise ValueError("the state of the optimizer is not that of Adam")


def check_form(own: Any, given: Any, where: str = "state") -> None:
    """Raise TypeError where a value in `given` has another type than at the same place in `own`, which may be None."""
    if isinstance(own, Mapping) and isinstance(given, Mapping):
        for key in own.keys() & given.keys():
            check_form(own[key], given[key], f"{where}.{key}")
    elif isinstance(own, list | tuple) and isinstance(given, list | tuple):
        for place, pair in enumerate(zip(own, given, strict=False)):
            check_form(*pair, f"{where}.{place}")
    elif own is not None and not _is_like(own, given):
        raise TypeError(f"{where} is of the type {type(given).__name__}")


def _is_like(own: Any, given: Any) -> bool:
    if isinstance(own, bool) or isinstance(given, bool):
        return type(own) is type(given)
    return isinstance(given, int | float if isinstance(own, float) else type(own))
