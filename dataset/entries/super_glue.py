"""SuperGLUE (Wang et al. 2019, arXiv:1905.00537). The test labels are hidden: `test` uses the validation split."""

from __future__ import annotations

from functools import partial

from dataset.entries.glue import ACCURACY_F1, CLAIMS, benchmark_task
from dataset.spec import Row
from heterolora.common.errors import UserError, nearest

_COPA_QUESTION = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}


def copa_texts(row: Row) -> tuple[str, str]:
    """Return the premise with its question, and both alternatives in order. The class is the better alternative."""
    question = row["question"]
    if question not in _COPA_QUESTION:
        raise UserError(f"copa: question '{question}' is not known", nearest(question, _COPA_QUESTION))
    return f"{row['premise']} {_COPA_QUESTION[question]}", f"First: {row['choice1']} Second: {row['choice2']}"


def wic_texts(row: Row) -> tuple[str, str]:
    """Return both sentences. The word comes before the first: the same sentences appear with different words."""
    return f"{row['word']}: {row['sentence1']}", row["sentence2"]


_super_glue = partial(benchmark_task, "aps/super_glue")
_TRUTH = ("False", "True")
_WIC_COLUMNS = ("word", "sentence1", "sentence2")
_CB_LABELS = ("entailment", "contradiction", "neutral")

DATASETS = (
    _super_glue("boolq", ("question", "passage"), _TRUTH, "yes or no question about a passage"),
    _super_glue("cb", CLAIMS, _CB_LABELS, "is the writer committed to the hypothesis?", metrics=ACCURACY_F1),
    _super_glue(
        "copa",
        ("premise", "choice1", "choice2", "question"),
        ("choice1", "choice2"),
        "which of two alternatives is the cause or the effect?",
        texts=copa_texts,
    ),
    _super_glue("wic", _WIC_COLUMNS, _TRUTH, "does a word have the same sense in two sentences?", texts=wic_texts),
)
