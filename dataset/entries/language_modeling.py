"""Plain text, packed into full blocks."""

from __future__ import annotations

from dataset.spec import DatasetSpec

DATASETS = (
    DatasetSpec(
        name="wikitext2",
        task="causal_language_modeling",
        path="Salesforce/wikitext",
        # The raw text: the other configuration has rare words replaced by <unk> for word-level models.
        config="wikitext-2-raw-v1",
        columns=("text",),
        running_text=True,
        metrics=("perplexity",),
        aliases=("wikitext-2-v1",),
        summary="WikiText-2, Wikipedia articles (Merity et al. 2017, arXiv:1609.07843)",
    ),
    DatasetSpec(
        name="lambada",
        task="causal_language_modeling",
        path="cimec/lambada",
        columns=("text",),
        metrics=("perplexity",),
        summary="LAMBADA, novels to train on, passages to test on (Paperno et al. 2016, arXiv:1606.06031)",
    ),
)
