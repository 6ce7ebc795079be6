"""GLUE (Wang et al. 2019, arXiv:1804.07461). The test labels are hidden: `test` uses the validation splits."""

from __future__ import annotations

from functools import partial
from typing import Any

from dataset.spec import DatasetSpec


def benchmark_task(
    path: str, name: str, columns: tuple[str, ...], labels: tuple[str, ...], summary: str, **options: Any
) -> DatasetSpec:
    """Return the entry of a task of GLUE or SuperGLUE. `options` are further fields of the entry."""
    rest = {
        "metrics": ("accuracy",),
        "test": None,
        "hidden_test": True,
        "official": f"{path.split('/')[1]}/{name}",
        **options,
    }
    return DatasetSpec(name, "classification", columns, path=path, config=name, labels=labels, summary=summary, **rest)


_glue = partial(benchmark_task, "nyu-mll/glue")
_PAIR = ("sentence1", "sentence2")
_QUESTIONS = ("question1", "question2")
CLAIMS = ("premise", "hypothesis")
_ENTAILED = ("entailment", "not_entailment")
ACCURACY_F1 = ("accuracy", "f1")
_MNLI_SPLITS = ("validation_matched", "validation_mismatched")
_MNLI_LABELS = ("entailment", "neutral", "contradiction")
_COLA_LABELS = ("unacceptable", "acceptable")

DATASETS = (
    _glue("cola", ("sentence",), _COLA_LABELS, "is a sentence grammatical?", metrics=("matthews", "accuracy")),
    _glue("sst2", ("sentence",), ("negative", "positive"), "sentiment of a film review"),
    _glue("mrpc", _PAIR, ("not_equivalent", "equivalent"), "do two sentences mean the same?", metrics=ACCURACY_F1),
    _glue("qqp", _QUESTIONS, ("not_duplicate", "duplicate"), "do two questions ask the same?", metrics=ACCURACY_F1),
    _glue("stsb", _PAIR, (), "similarity of two sentences, 0 to 5 (regression)", metrics=("pearson", "spearman")),
    _glue("mnli", CLAIMS, _MNLI_LABELS, "does the premise entail the hypothesis?", validation=_MNLI_SPLITS),
    _glue("qnli", ("question", "sentence"), _ENTAILED, "does the sentence answer the question?"),
    _glue("rte", _PAIR, _ENTAILED, "does the first sentence entail the second?"),
    _glue("wnli", _PAIR, ("not_entailment", "entailment"), "does a sentence follow with its pronoun replaced?"),
)
