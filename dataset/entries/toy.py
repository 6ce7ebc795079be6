"""The data sets of the built-in toy world. A seeded generator makes them, so they need no download."""

from __future__ import annotations

from functools import partial

from dataset.entries.summarization import summaries
from dataset.spec import DatasetSpec
from dataset.toy import tasks

_classification = partial(DatasetSpec, task="classification", metrics=("accuracy",))

DATASETS = (
    _classification(
        name="toy_nli",
        columns=("sentence1", "sentence2"),
        labels=tasks.NLI_LABELS,
        generate=tasks.generate_nli,
        summary="toy world: does the first sentence answer the question with yes?",
    ),
    _classification(
        name="toy_sentiment",
        columns=("sentence",),
        labels=tasks.SENTIMENT_LABELS,
        generate=tasks.generate_sentiment,
        summary="toy world: is a review of a work of art positive?",
    ),
    DatasetSpec(
        name="toy_lm",
        task="causal_language_modeling",
        columns=("text",),
        metrics=("perplexity",),
        generate=tasks.generate_lm,
        summary="toy world: texts about people, things and places",
    ),
    summaries(
        "toy_summary",
        "document",
        "toy world: two descriptions, summarised in simple words",
        generate=tasks.generate_summary,
    ),
)
