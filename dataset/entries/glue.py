"""GLUE (Wang et al. 2019, arXiv:1804.07461). The benchmark hides its test labels: `test` uses the validation split."""

from __future__ import annotations

from dataset.spec import DatasetSpec


def _glue(
    name: str,
    columns: tuple[str, ...],
    labels: tuple[str, ...],
    summary: str,
    metrics: tuple[str, ...] = ("accuracy",),
    validation: tuple[str, ...] = ("validation",),
) -> DatasetSpec:
    return DatasetSpec(
        name=name,
        task="classification",
        path="nyu-mll/glue",
        config=name,
        columns=columns,
        labels=labels,
        metrics=metrics,
        validation=validation,
        test=None,
        official=f"glue/{name}",
        summary=summary,
    )


_PAIR = ("sentence1", "sentence2")
_ENTAILED = ("entailment", "not_entailment")

DATASETS = (
    _glue(
        "cola", ("sentence",), ("unacceptable", "acceptable"), "is a sentence grammatical?", ("matthews", "accuracy")
    ),
    _glue("sst2", ("sentence",), ("negative", "positive"), "sentiment of a film review"),
    _glue("mrpc", _PAIR, ("not_equivalent", "equivalent"), "do two sentences say the same?", ("accuracy", "f1")),
    _glue(
        "qqp",
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        "do two questions ask the same?",
        ("accuracy", "f1"),
    ),
    _glue("stsb", _PAIR, (), "similarity of two sentences, 0 to 5 (regression)", ("pearson", "spearman")),
    _glue(
        "mnli",
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        "does the premise entail the hypothesis?",
        validation=("validation_matched", "validation_mismatched"),
    ),
    _glue("qnli", ("question", "sentence"), _ENTAILED, "does the sentence answer the question?"),
    _glue("rte", _PAIR, _ENTAILED, "does the first sentence entail the second?"),
    _glue("wnli", _PAIR, ("not_entailment", "entailment"), "does a sentence follow with its pronoun replaced?"),
)
