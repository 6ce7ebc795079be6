"""The names of the actions."""

from __future__ import annotations

TRAIN, TEST, IMP_TEST, DYREALLOC = "train", "test", "imp-test", "train-dyrealloc"
PREDICT, CHAT = "predict", "chat"

ACTIONS: dict[str, str] = {
    TRAIN: "fine-tune a model, plain or with LoRA",
    TEST: "measure a model or a checkpoint on the test split",
    IMP_TEST: "score the elements of a model before training",
    DYREALLOC: "fine-tune and reallocate the elements during training",
    PREDICT: "write what a trained model predicts for new rows",
    CHAT: "talk to a language model in the terminal",
}

TRAINING = (TRAIN, DYREALLOC)
MEASURING = (*TRAINING, TEST)
WITH_RUN = (*MEASURING, IMP_TEST)  # they have a run folder and read a data set of examples
ANSWERING = (PREDICT, CHAT)  # they need no labels
