"""What the toy data needs no LoRA for: a bag of words, and the frozen model with a linear head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from transformers import AutoModel, AutoTokenizer

from actions.request.origin import TOY_BASE
from dataset import registry
from dataset.reading.stored import DATA_SEED
from heterolora.common.checks import present
from tools.toy.runs import DATA, Result


def bag_of_words() -> Result:
    """Logistic regression on the counts of words and word pairs of both sentences."""
    classifier = make_pipeline(CountVectorizer(ngram_range=(1, 2)), LogisticRegression(max_iter=1000))
    return _baseline(classifier, lambda rows: [f"{row['sentence1']} {row['sentence2']}" for row in rows])


def frozen() -> Result:
    """The frozen model with a linear head: logistic regression on the last token's hidden state."""
    return _baseline(LogisticRegression(C=100, max_iter=5000), _hidden)


def _baseline(classifier: Any, features: Callable[[list[dict]], Sequence[str] | np.ndarray]) -> Result:
    generate = present(registry.get(DATA).generate)
    train, test = (generate(split, DATA_SEED) for split in ("train", "test"))
    classifier.fit(features(train), [row["label"] for row in train])
    return Result(classifier.score(features(test), [row["label"] for row in test]))


@torch.no_grad()
def _hidden(rows: list[dict]) -> np.ndarray:
    """The last token's final hidden state of every row (rows, hidden): the input of a classification head."""
    tokenizer = AutoTokenizer.from_pretrained(TOY_BASE, padding_side="left", trust_remote_code=False)
    network = AutoModel.from_pretrained(TOY_BASE, trust_remote_code=False, use_kernels=False).eval()
    states = []
    for first in range(0, len(rows), 200):
        some = rows[first : first + 200]
        pairs = [row["sentence1"] for row in some], [row["sentence2"] for row in some]
        states.append(network(**tokenizer(*pairs, padding=True, return_tensors="pt")).last_hidden_state[:, -1])
    return torch.cat(states).numpy()
