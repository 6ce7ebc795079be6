"""The names of the actions."""

from __future__ import annotations

TRAIN, TEST, IMP_TEST, DYREALLOC = "train", "test", "imp-test", "train-dyrealloc"

ACTIONS: dict[str, str] = {
    TRAIN: "fine-tune a model, plain or with LoRA",
    TEST: "measure a model or a checkpoint on the test split",
    IMP_TEST: "score the elements of a model before training",
    DYREALLOC: "fine-tune and reallocate the elements during training",
}

TRAINING = (TRAIN, DYREALLOC)
MEASURING = (*TRAINING, TEST)
