"""Texts with their summaries, as prompt → summary for a causal model."""

from __future__ import annotations

from dataset.spec import DatasetSpec, Row

ROUGE = ("rouge1", "rouge2", "rougeL")
CUE = "\n\nTL;DR:"  # asks a causal model for a summary without training (Radford et al. 2019)


def document(row: Row) -> str:
    return row["document"]


def dialogue(row: Row) -> str:
    return row["dialogue"]


def summary(row: Row) -> str:
    return row["summary"]


DATASETS = (
    DatasetSpec(
        name="xsum",
        task="summarization",
        path="EdinburghNLP/xsum",
        columns=("document", "summary"),
        prompt=document,
        cue=CUE,
        response=summary,
        metrics=ROUGE,
        official="rouge",
        summary="one-sentence summaries of BBC articles (Narayan et al. 2018, arXiv:1808.08745)",
    ),
    DatasetSpec(
        name="samsum",
        task="summarization",
        path="knkarthick/samsum",
        columns=("dialogue", "summary"),
        prompt=dialogue,
        cue=CUE,
        response=summary,
        metrics=ROUGE,
        official="rouge",
        summary="summaries of chat dialogues (Gliwa et al. 2019, arXiv:1911.12237)",
    ),
)
