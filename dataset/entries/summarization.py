"""Texts with their summaries, as prompt → summary for a causal model."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

from dataset.spec import DatasetSpec


def summaries(name: str, column: str, summary: str, **options: Any) -> DatasetSpec:
    """Return the entry of a data set with texts in `column`. `options` are further fields of the entry."""
    return DatasetSpec(
        name=name,
        task="summarization",
        columns=(column, "summary"),
        prompt=itemgetter(column),
        cue="\n\nTL;DR:",  # makes a causal model summarise without training (Radford et al. 2019)
        response=itemgetter("summary"),
        metrics=("rouge1", "rouge2", "rougeL"),
        official="rouge",
        summary=summary,
        **options,
    )


_XSUM = "one-sentence summaries of BBC articles (Narayan et al. 2018, arXiv:1808.08745)"
_SAMSUM = "summaries of chat dialogues (Gliwa et al. 2019, arXiv:1911.12237)"

DATASETS = (
    summaries("xsum", "document", _XSUM, path="EdinburghNLP/xsum"),
    summaries("samsum", "dialogue", _SAMSUM, path="knkarthick/samsum"),
)
