"""The names of the actions and of the tools, and how a user starts them."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from heterolora.program import STARTED

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

RUNS, MODELS, DATASETS = "runs", "models", "datasets"
LISTS: dict[str, str] = {
    RUNS: "list the runs of a folder",
    MODELS: "list the families of models that have a table",
    DATASETS: "list the data sets that have an entry",
}

#: The commands that list all values of an option.
ALL_OPTIONS, ALL_MODELS = "python -m main ACTION --help-all", f"python -m main {MODELS}"
ALL_DATASETS, ALL_PLACES = f"python -m main {DATASETS}", "tools/inspect_model.py"

TRAINING = (TRAIN, DYREALLOC)
MEASURING = (*TRAINING, TEST)
WITH_RUN = (*MEASURING, IMP_TEST)  # they have a run folder and read a data set of examples
ANSWERING = (PREDICT, CHAT)  # they need no labels


class Tool(NamedTuple):
    """A file of `tools/`, without its ending, and what it does."""

    file: str
    summary: str


#: What follows `heterolora` to start a tool.
TOOLS: dict[str, Tool] = {
    "report": Tool("report", "make one page of runs"),
    "realloc": Tool("realloc_lora_rank", "turn scores into a configuration"),
    "export": Tool("export", "write a result as an adapter or a merged model"),
    "inspect": Tool("inspect_model", "list the search space of a model; --plan: memory and time"),
    "compare": Tool("compare_scores", "compare scores files"),
    "plot": Tool("plot_realloc", "draw the pictures of reallocations again"),
    "study": Tool("study", "compare methods at equal parameters"),
    "quickstart": Tool("quickstart", "run all steps on the toy world"),
}
_NAMES = {tool.file: name for name, tool in TOOLS.items()}
_COMMAND = re.compile(r"\bpython -m main\b|(?:\bpython )?\btools/(" + "|".join(_NAMES) + r")\.py\b")


def as_started(text: str) -> str:
    """The text, which names commands as in a clone, with the command `heterolora` if that has started the program."""
    if STARTED not in os.environ:
        return text
    return _COMMAND.sub(lambda found: f"heterolora {_NAMES[found[1]]}" if found[1] else "heterolora", text)
