"""Texts with their summaries, as prompt → summary for a causal model."""

from __future__ import annotations

from dataset.spec import DatasetSpec, Row

_ROUGE = ("rouge1", "rouge2", "rougeL")


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
        # "TL;DR:" asks a causal model for a summary without training (Radford et al. 2019).
        cue="\n\nTL;DR:",
        response=summary,
        metrics=_ROUGE,
        official="rouge",
        summary="one-sentence summaries of BBC articles (Narayan et al. 2018, arXiv:1808.08745)",
    ),
    DatasetSpec(
        name="samsum",
        task="summarization",
        path="knkarthick/samsum",
        columns=("dialogue", "summary"),
        prompt=dialogue,
        cue="\n\nTL;DR:",
        response=summary,
        metrics=_ROUGE,
        official="rouge",
        summary="summaries of chat dialogues (Gliwa et al. 2019, arXiv:1911.12237)",
    ),
)
