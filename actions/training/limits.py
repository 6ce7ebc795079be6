"""Limits that the data and the model set: batches of an epoch, steps of a run, positions. Checked before training."""

from __future__ import annotations

import math
from collections.abc import Mapping

from datasets import Dataset
from transformers import PretrainedConfig

from dataset.batching.module import TextDataModule
from dataset.encoding.encode import Lengths
from heterolora.common.errors import UserError
from model.packing import packing_fails
from model.skeleton import skeleton
from model.task.optimization import batches_within, steps_of_run
from options.actions import DYREALLOC, TEST, TRAIN, TRAINING
from options.every import Options, changed
from options.loop import EPOCHS, MOST_EPOCHS, STEPS


def check_batches(action: str, options: Options, data: TextDataModule) -> None:
    """Raise UserError if a limit selects no batch, if warm-up or the validation interval is too long, or if a training
    run has no validation rows.

    Packed text is checked once it is encoded, because only then the number of its rows is known.
    """
    loop, splits = options.loop, data.splits
    world = options.devices.world
    if action in (TRAIN, DYREALLOC) and not splits.validated:
        raise UserError("--validation-share 0 leaves no rows to choose the best checkpoint by", "give a share above 0")

    def selected(flag: str, limit: int | float, what: str, rows: Dataset) -> int | None:
        available = data.batches(rows, world)
        if available is None:
            return None
        if isinstance(limit, int):
            return min(available, limit)
        if not (chosen := int(available * limit)):  # rounded down, as Lightning does
            raise UserError(
                f"{flag} {limit:g} of the {available} batches of {what} is no batch",
                "give a larger share, or a number of batches such as 1",
            )
        return chosen

    def every(flag: str, limit: int | float, named: Mapping[str, Dataset]) -> None:
        for name, rows in named.items():
            selected(flag, limit, name, rows)

    if action in (TRAIN, DYREALLOC):
        per_epoch = selected("--limit-train-batches", loop.limit_train_batches, "the training set", splits.train)
        if per_epoch is not None:
            _check_epoch(options, per_epoch)
            if action == DYREALLOC and options.reallocation.shrinks:
                _check_shrinking(options, per_epoch)
    if action in (TRAIN, DYREALLOC) or (action == TEST and measures_validation(data)):
        every("--limit-val-batches", loop.limit_val_batches, splits.validation)
    if action in (TRAIN, DYREALLOC, TEST):
        every("--limit-test-batches", loop.limit_test_batches, splits.test)


def _check_epoch(options: Options, batches: int) -> None:
    loop, update = options.loop, options.optimization
    if isinstance(every := loop.val_check_interval, int) and every > batches:
        raise UserError(
            f"--val-check-interval {every} is longer than an epoch of {batches} batches", f"give at most {batches}"
        )
    steps = steps_of_run(batches, loop.accumulate_grad_batches, loop.max_epochs, update.max_steps)
    if isinstance(update.warmup_steps, int) and update.warmup_steps >= steps:
        raise UserError(
            f"--warmup-steps {update.warmup_steps} is not shorter than the run, which has {steps} optimizer steps",
            f"give at most {steps - 1}",
        )


def _check_shrinking(options: Options, batches: int) -> None:
    loop, most = options.loop, options.optimization.max_steps
    steps = steps_of_run(batches, loop.accumulate_grad_batches, loop.max_epochs, most)
    if steps < 2:
        found = "a run of 1 optimizer step has no step to shrink in"
        raise UserError(found, "train for more steps, or use --budget-schedule fixed")


def with_epochs(action: str, options: Options, data: TextDataModule) -> tuple[Options, tuple[str, ...]]:
    """The options with `--max-epochs`, and a line to print if it is not given: then it depends on the data.

    Packed text is encoded for it.
    """
    loop = options.loop
    if loop.max_epochs is not None or action not in TRAINING:
        return options, ()
    if options.data.streaming:  # a run is one epoch, and a longer one goes on
        return changed(options, {"max_epochs": -1}), ()
    world = options.devices.world
    batches = data.batches(data.splits.train, world) or data.train_batches_per_epoch(world)
    steps = max(1, math.ceil(batches_within(batches, loop.limit_train_batches) / loop.accumulate_grad_batches))
    epochs = default_epochs(steps, options.optimization.max_steps)
    line = f"--max-epochs is {epochs}: an epoch has {steps:,} optimizer steps"
    return changed(options, {"max_epochs": epochs}), (line,)


def default_epochs(steps: int, max_steps: int) -> int:
    """The epochs of `steps` optimizer steps that `STEPS` of them need, or `--max-steps` if that is more."""
    return max(EPOCHS, min(MOST_EPOCHS, math.ceil(STEPS / steps)), math.ceil(max_steps / steps))


def check_generation(options: Options, limits: Lengths, positions: int | None) -> None:
    """Raise UserError if the longest prompt and --max-new-tokens have more tokens than the model has positions."""
    if positions is None or options.max_new_tokens is None or not limits.max_target_len:
        return
    prompt = limits.max_token_len - limits.max_target_len
    if prompt + options.max_new_tokens > positions:
        raise UserError(
            f"--max-new-tokens {options.max_new_tokens} after a prompt of up to {prompt} tokens is more than the "
            f"model's {positions} positions",
            f"give at most {positions - prompt}, or a smaller --max-token-len",
        )


def check_packing(data: TextDataModule, config: PretrainedConfig) -> None:
    """Raise UserError if packed rows would see each other, or if a row is longer than the window of the attention."""
    if not data.packs:
        return
    if (why := packing_fails(config, data.spec.task)) is not None:
        own, text = skeleton(config, data.spec.task).config, config.get_text_config()
        others = set(getattr(text, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
        if own._attn_implementation != "sdpa":
            why += f", and it has the attention '{own._attn_implementation}'"
        why += f", and it has layers of the type {min(others)}" if others else ""
        raise UserError(f"--packing does not work with {config.model_type}: {why}", "leave --packing out")
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    if window is not None and data.limits.max_token_len > window:
        raise UserError(
            f"--packing with --max-token-len {data.limits.max_token_len}, and the model attends to {window} tokens",
            f"give --max-token-len of at most {window}, or leave --packing out",
        )


def measures_validation(data: TextDataModule) -> bool:
    """Whether the final metrics are also of validation splits, besides the test splits."""
    return bool(set(data.validation_names) - set(data.test_names))
