"""The options of predictions and of generated text. Importing this file is cheap, so that `--help` is fast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from options.actions import ANSWERING, PREDICT
from options.declare import option
from options.ranges import at_least, share

ENDINGS, STDOUT = (".csv", ".jsonl", ".parquet"), "-"  # of `--output`
_PREDICT = (PREDICT,)


def _no_file(run: Mapping[str, Any]) -> str | None:
    to_terminal = run["output"] is None or str(run["output"]) == STDOUT
    return "without a file as --output" if to_terminal else None


@dataclass(frozen=True)
class PredictingOptions:
    """What is predicted, where it is written, and how text is drawn."""

    # fmt: off
    output: Path | None = option(None, "file of the predictions: csv, jsonl or parquet by its ending, or - for "
        "standard output as JSON lines, which is the default with --text", actions=_PREDICT, resume="start")
    overwrite: bool = option(False, "replace an existing --output", actions=_PREDICT, resume="start", idle=_no_file)
    text: tuple[str, ...] | None = option(None, "predict for this text instead of a file; may be given several times",
        actions=_PREDICT, resume="start")
    probabilities: bool = option(False, "also write the probability of each class, in a column each", actions=_PREDICT,
        resume="start")
    temperature: float = option(0.0, "draw each token at this temperature; 0: always the most likely one", at_least(0),
        actions=ANSWERING, resume="start")
    top_p: float = option(1.0, "draw from the most likely tokens that have this probability together", share,
        actions=ANSWERING, resume="start", idle=lambda run: None if run["temperature"] else "with --temperature 0")
