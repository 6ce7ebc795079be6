"""What `imp-test` and `train-dyrealloc` check before anything is read."""

from __future__ import annotations

from actions.resolve import Request
from heterolora.allocation import Mode, check_mode, default_mode
from heterolora.errors import UserError


def check_scoring(request: Request) -> Mode:
    """What competes with what, for a model that has elements to score.

    Raises:
        UserError: a plain model, or a mode that has nothing to choose from.
    """
    if request.adapted is None:
        raise UserError(
            f"--model '{request.options.model}' is a plain model: {request.action} has no elements to score",
            "use <family>_lora or <family>_lora_ags, and --load for the plain model",
        )
    mode = request.options.dyrealloc_ags_mode or default_mode(request.adapted.shortcuts)
    check_mode(mode, has_lora=True, has_shortcuts=request.adapted.shortcuts)
    return mode
