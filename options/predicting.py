"""The options of predictions and of generated text. Importing this file is cheap, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from options.actions import ANSWERING, PREDICT
from options.declare import option
from options.ranges import at_least, share

ENDINGS, STDOUT = (".csv", ".jsonl", ".parquet"), "-"  # of `--output`
_PREDICT = (PREDICT,)


def file_of(output: Path | str | None) -> Path | None:
    """The file that `--output` names. None for standard output."""
    return None if output is None or str(output) == STDOUT else Path(output)


@dataclass(frozen=True)
class PredictingOptions:
    """What is predicted, where it is written, and how text is drawn."""

    # fmt: off
    output: Path | None = option(None, "file of the predictions: csv, jsonl or parquet by its ending, or - for "
        "standard output as JSON lines, which is the default with --text", actions=_PREDICT, resume="start",
        brief="file of the predictions: csv, jsonl or parquet")
    text: tuple[str, ...] | None = option(None, "predict for this text instead of a file; may be given several times",
        actions=_PREDICT, resume="start",
        brief="predict for this text instead of a file")
    probabilities: bool = option(False, "also write the probability of each class, in a column each", actions=_PREDICT,
        resume="start",
        brief="also write the probability of each class")
    temperature: float = option(0.0, "draw each token at this temperature; 0: always the most likely one", at_least(0),
        actions=ANSWERING, resume="start",
        brief="draw the text at this temperature (0: the most likely one)")
    top_p: float = option(1.0, "draw from the most likely tokens that have this probability together", share,
        actions=ANSWERING, resume="start", idle=lambda run: None if run["temperature"] else "with --temperature 0")
