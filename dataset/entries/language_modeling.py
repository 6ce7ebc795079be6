"""Plain text, packed into full blocks."""

from __future__ import annotations

from functools import partial

from dataset.spec import DatasetSpec

_text = partial(DatasetSpec, task="causal_language_modeling", columns=("text",), metrics=("perplexity",))

DATASETS = (
    _text(
        name="wikitext2",
        path="Salesforce/wikitext",
        config="wikitext-2-raw-v1",  # the other configuration replaces rare words by <unk>, for word-level models
        running_text=True,
        aliases=("wikitext-2-v1",),
        summary="WikiText-2, Wikipedia articles (Merity et al. 2017, arXiv:1609.07843)",
    ),
    _text(
        name="lambada",
        path="cimec/lambada",
        config="plain_text",
        summary="LAMBADA, novels to train on, passages to test on (Paperno et al. 2016, arXiv:1606.06031)",
    ),
)
