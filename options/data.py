"""The options of the data module. Importing this file is cheap, so that `--help` is fast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heterolora.common.checks import Condition
from heterolora.elements.task import CLASSIFYING, GENERATING
from options.actions import ANSWERING, MEASURING, PREDICT, TRAINING, WITH_RUN
from options.declare import idle_without, option
from options.ranges import at_least, seed_range

HELD_OUT = 0.05  # default of `--validation-share`

_share_below_1 = Condition(lambda value: 0 <= value < 1, "a share in [0, 1)")


def _described_by_entry(run: Mapping[str, Any]) -> str | None:
    return f"with --dataset {run['dataset']}, which is not own data" if run["entry"] is not None else None


def _own_place(run: Mapping[str, Any]) -> str | None:
    return None if _described_by_entry(run) else f"with --dataset {run['dataset']}, which names the place itself"


def _no_classes(run: Mapping[str, Any]) -> str | None:
    predicts_text = run["action"] == PREDICT and run["task"] not in CLASSIFYING
    return f"on {run['task']}" if predicts_text else _described_by_entry(run)


def _no_choices(run: Mapping[str, Any]) -> str | None:
    chooses = (run["choices_column"] if run["entry"] is None else run["entry"].choices) is not None
    return None if chooses else f"with --dataset {run['dataset']}, which is not multiple choice"


def _nothing_to_pack(run: Mapping[str, Any]) -> str | None:
    if run["task"] in CLASSIFYING:
        return f"on {run['task']}"
    if run["entry"] is None:
        is_packed = run["prompt_column"] is None and run["messages_column"] is None
    else:
        is_packed = run["entry"].packed
    return f"with --dataset {run['dataset']}, whose text is in full blocks already" if is_packed else None


def _not_streaming(run: Mapping[str, Any]) -> str | None:
    return None if run["streaming"] else "without --streaming"


@dataclass(frozen=True)
class OwnDataOptions:
    """What the columns of own data hold. `None`: not given, and derived from the data where there is one choice."""

    # fmt: off
    text_columns: str | None = option(None, "column of the texts, or two for pairs, separated by a comma",
        from_checkpoint=True, idle=_described_by_entry,
        brief="own data: column of the texts, or two with a comma")
    label_column: str | None = option(None, "column of the labels; real numbers are a regression",
        from_checkpoint=True, actions=WITH_RUN, idle=_described_by_entry,
        brief="own data: column of the labels")
    labels: str | None = option(None, "the labels in the order of their ids, separated by commas; by default the "
        "values found, sorted", from_checkpoint=True, idle=_no_classes)
    regression: bool | None = option(None, "predict the numbers of the label column, also whole ones; by default if "
        "they are real numbers", from_checkpoint=True, actions=WITH_RUN, idle=_described_by_entry)
    multi_label: bool | None = option(None, "a row has any number of labels: a list, or text with ; between them; by "
        "default if the labels are such", from_checkpoint=True, actions=WITH_RUN, idle=_described_by_entry)
    prompt_column: str | None = option(None, "column of the prompts, without loss; several, separated by "
        "commas, are joined by line breaks", from_checkpoint=True, idle=_described_by_entry,
        brief="own data: column of the prompts")
    response_column: str | None = option(None, "column of the responses to the prompts, with loss",
        from_checkpoint=True, actions=WITH_RUN, idle=_described_by_entry,
        brief="own data: column of the responses")
    choices_column: str | None = option(None, "column of the choices after the prompt, lists of texts; --label-column "
        "says which one is right", from_checkpoint=True, idle=_described_by_entry)
    drop_incomplete: bool = option(False, "leave out rows without a label or a text; NA, null and nan are no text",
        actions=WITH_RUN, from_checkpoint=True, idle=_described_by_entry)
    messages_column: str | None = option(None, "column of conversations, with loss on the assistant's turns",
        from_checkpoint=True, idle=_described_by_entry)
    # fmt: on


@dataclass(frozen=True)
class DataOptions:
    """How a data set is read, tokenised and batched."""

    # fmt: off
    batch_size: int = option(8, "rows per device and batch", at_least(1), resume="global_batch",
        brief="rows per device and batch")
    max_token_len: int | None = option(None, "longest input in tokens (block length for language modelling); by "
        "default the model's limit, at most 512 (2048 with --few-shot)", at_least(2), from_checkpoint=True,
        actions=(*WITH_RUN, *ANSWERING),
        brief="longest input in tokens (at most 512)")
    few_shot: int = option(0, "examples before each question of multiple choice that is measured; 5 is usual for MMLU",
        at_least(0), from_checkpoint=True, actions=MEASURING, idle=_no_choices)
    max_target_len: int = option(64, "longest summary in tokens", at_least(1), from_checkpoint=True,
        idle=idle_without("task", *GENERATING))
    group_by_length: bool = option(True, "train on batches of rows of similar length, which need less padding",
        actions=TRAINING, resume="epoch_end")
    packing: bool = option(False, "join several training rows in one sequence of --max-token-len tokens, in which they "
        "do not see each other: no padding", actions=TRAINING, resume="free", idle=_nothing_to_pack)
    num_workers: int = option(0, "processes that encode and load data", at_least(0), aliases=("--cpu",),
        actions=MEASURING, resume="free")
    streaming: bool = option(False, "read the training rows while the run trains on them, from the parquet or jsonl "
        "files of a folder or from the hub: for data larger than the disk; needs --max-steps", from_checkpoint=True,
        actions=WITH_RUN)
    shuffle_buffer: int = option(10_000, "rows that --streaming reads at once, and shuffles among each other",
        at_least(1), from_checkpoint=True, actions=WITH_RUN, idle=_not_streaming)
    dataset_saved_path: Path | None = option(None,
        "read the data set from a save_to_disk folder or a folder of jsonl, csv or parquet files", from_checkpoint=True,
        actions=WITH_RUN, resume="free", idle=_own_place)
    validation_share: float = option(HELD_OUT, "share of the training rows to hold out if there is no validation "
        "split; 0 (test only): measure all rows", _share_below_1, from_checkpoint=True,
        actions=WITH_RUN)
    validation_seed: int | None = option(None, "seed of the rows of own data to hold out; by default --seed",
        seed_range, from_checkpoint=True, actions=WITH_RUN, idle=_described_by_entry)
    disable_dataset_cache: bool = option(False, "tokenise again instead of reading the cache", actions=WITH_RUN,
        resume="free")
    # fmt: on

    @property
    def buffer(self) -> int | None:
        """The rows of a training split that are read at once. None: all of them."""
        return self.shuffle_buffer if self.streaming else None
