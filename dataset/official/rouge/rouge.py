"""ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004, ACL W04-1013): mean F-measure over rows, with Porter stemming.

Google's `rouge_score` computes it. Sentence-split ROUGE-Lsum is left out: it needs a sentence splitter's model.
"""

import datasets
import evaluate
from rouge_score import rouge_scorer

_KEYS = ("rouge1", "rouge2", "rougeL")


class Rouge(evaluate.Metric):
    """`compute(predictions, references)`: texts, one reference for each prediction."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name != "default":
            raise KeyError("rouge has no configurations")
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Lin 2004, ACL W04-1013",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        scorer = rouge_scorer.RougeScorer(list(_KEYS), use_stemmer=True)
        rows = [scorer.score(reference, text) for reference, text in zip(references, predictions, strict=True)]
        return {key: sum(row[key].fmeasure for row in rows) / len(rows) for key in _KEYS}
