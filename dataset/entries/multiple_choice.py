"""Questions with choices, measured by the choice that the model finds most likely.

The prompts of HellaSwag and ARC are those of EleutherAI's lm-evaluation-harness
(github.com/EleutherAI/lm-evaluation-harness, lm_eval/tasks), whose results are the usual ones for language models.
"""

from __future__ import annotations

import re
from functools import partial

from dataset.choices import GAP, LETTERS, Choices
from dataset.spec import DatasetSpec, Row

_question = partial(DatasetSpec, task="causal_language_modeling", cue=GAP, metrics=("accuracy", "accuracy_norm"))

# ---- MMLU, as in its authors' evaluate.py (github.com/hendrycks/test)


def mmlu_header(row: Row) -> str:
    """Return the sentence before the examples. The rows of the split `auxiliary_train` have no subject."""
    about = f" about {row['subject'].replace('_', ' ')}" if row["subject"] else ""
    return f"The following are multiple choice questions (with answers){about}.\n\n"


def mmlu_prompt(row: Row) -> str:
    lines = (f"{letter}. {text}" for letter, text in zip(LETTERS, row["choices"], strict=False))
    return "\n".join([row["question"].strip(), *lines, "Answer:"])


def mmlu_letters(row: Row) -> tuple[str, ...]:
    return tuple(LETTERS[: len(row["choices"])])


# ---- HellaSwag


def _without_marks(text: str) -> str:
    """Return a text without the marks of WikiHow, such as [title] and [step]."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def hellaswag_prompt(row: Row) -> str:
    return _without_marks(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}")


def hellaswag_endings(row: Row) -> list[str]:
    return [_without_marks(ending) for ending in row["endings"]]


# ---- ARC


def arc_prompt(row: Row) -> str:
    return f"Question: {row['question']}\nAnswer:"


def arc_texts(row: Row) -> list[str]:
    return row["choices"]["text"]


def arc_keys(row: Row) -> list[str]:
    return row["choices"]["label"]


_arc = partial(
    _question,
    path="allenai/ai2_arc",
    columns=("question", "choices"),
    label="answerKey",
    prompt=arc_prompt,
    choices=Choices(arc_texts, arc_keys, nested=("choices",)),
)

DATASETS = (
    _question(
        name="mmlu",
        path="cais/mmlu",
        config="all",
        columns=("question", "choices", "subject"),
        label="answer",
        train="auxiliary_train",
        prompt=mmlu_prompt,
        choices=Choices(mmlu_letters, nested=("choices",), header=mmlu_header, examples="dev", group="subject"),
        metrics=("accuracy",),  # all letters have the same length
        summary="MMLU, exam questions of 57 subjects (Hendrycks et al. 2020, arXiv:2009.03300)",
    ),
    _question(
        name="hellaswag",
        path="Rowan/hellaswag",
        columns=("activity_label", "ctx_a", "ctx_b", "endings"),
        prompt=hellaswag_prompt,
        choices=Choices(hellaswag_endings, nested=("endings",)),
        test=None,
        hidden_test=True,
        summary="HellaSwag, how does a scene go on? (Zellers et al. 2019, arXiv:1905.07830)",
    ),
    _arc(
        name="arc_easy",
        config="ARC-Easy",
        summary="ARC, easy science questions of schools (Clark et al. 2018, arXiv:1803.05457)",
    ),
    _arc(
        name="arc_challenge",
        config="ARC-Challenge",
        summary="ARC, science questions that simple methods answer wrongly (Clark et al. 2018, arXiv:1803.05457)",
    ),
)
