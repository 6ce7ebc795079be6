"""What a model that ignores its input reaches, beside what training reaches."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dataset.batching.module import TextDataModule

_ROUNDING = 1e-6  # of a metric in float32


def majority(data: TextDataModule, split: str) -> float | None:
    """The share of the most frequent class of a validation split. None without one class a row."""
    if not data.spec.single_label:
        return None
    labels = data.encoded(data.splits.validation[split]).with_format("numpy")["labels"][:]
    return float(np.bincount(labels).max() / len(labels))


def nothing_learnt(data: TextDataModule, split: str, metrics: Mapping[str, float]) -> str | None:
    """A sentence if metrics of a validation split are not above those of its most frequent class; None otherwise."""
    share = majority(data, split)
    if share is None:
        return None
    constant = {"accuracy": share, "matthews": 0.0}  # of the answer with the most frequent class for all rows
    name = next((name for name in constant if name in metrics), None)
    if name is None or metrics[name] > constant[name] + _ROUNDING:
        return None
    return (
        f"the result is not above the most frequent class: {name} {metrics[name]:.4f} on {split}, and that class alone "
        f"gives {constant[name]:.4f}; try --learning-rate auto, more --max-epochs or more rows"
    )
