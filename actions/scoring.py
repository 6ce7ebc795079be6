"""What `imp-test` and `train-dyrealloc` share: a check before anything is read, and the scoring batches."""

from __future__ import annotations

from collections.abc import Iterable

from actions.console import note
from actions.resolve import Request
from dataset.module import TextDataModule
from heterolora.allocation import Mode, check_mode, default_mode
from heterolora.errors import UserError
from heterolora.saliency.problem import Batch
from model.task.scoring import batch_count


def check_scoring(request: Request) -> Mode:
    """The allocation mode of a model that has elements to score.

    Raises:
        UserError: the model is plain, or the mode does not fit it.
    """
    if request.adapted is None:
        raise UserError(
            f"--model '{request.options.model}' is a plain model: {request.action} has no elements to score",
            "use <family>_lora or <family>_lora_ags, and --load for the plain model",
        )
    mode = request.options.reallocation.dyrealloc_ags_mode or default_mode(request.adapted.shortcuts)
    check_mode(mode, has_lora=True, has_shortcuts=request.adapted.shortcuts)
    return mode


def scoring_batches(data: TextDataModule, limit: int | float, rank: int, world: int) -> Iterable[Batch]:
    """The scoring batches of process `rank` of `world`. Prints a note if `limit` exceeds the training set."""
    count, remark = batch_count(limit, data.scoring_batch_count)
    if remark is not None:
        note(remark)
    return data.scoring_batches(count, rank, world)
