"""The built-in toy world: made by a seeded generator, so that everything can be tried without a download."""

from __future__ import annotations

from dataset.entries.summarization import CUE, ROUGE, document, summary
from dataset.spec import DatasetSpec
from dataset.toy import tasks

DATASETS = (
    DatasetSpec(
        name="toy_nli",
        task="classification",
        columns=("sentence1", "sentence2"),
        labels=tasks.NLI_LABELS,
        metrics=("accuracy",),
        generate=tasks.generate_nli,
        summary="toy world: does the first sentence say yes to the question after it?",
    ),
    DatasetSpec(
        name="toy_sentiment",
        task="classification",
        columns=("sentence",),
        labels=tasks.SENTIMENT_LABELS,
        metrics=("accuracy",),
        generate=tasks.generate_sentiment,
        summary="toy world: is a review of a work of art good?",
    ),
    DatasetSpec(
        name="toy_lm",
        task="causal_language_modeling",
        columns=("text",),
        metrics=("perplexity",),
        generate=tasks.generate_lm,
        summary="toy world: what people, things and places are like",
    ),
    DatasetSpec(
        name="toy_summary",
        task="summarization",
        columns=("document", "summary"),
        prompt=document,
        cue=CUE,
        response=summary,
        metrics=ROUGE,
        official="rouge",
        generate=tasks.generate_summary,
        summary="toy world: two descriptions in the plainest words",
    ),
)
