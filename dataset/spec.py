"""What a data set is, in one declarative entry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from heterolora.errors import UserError, nearest
from heterolora.family import TASKS, Task

METRICS: Mapping[Task, tuple[str, ...]] = {
    "classification": ("accuracy", "f1", "matthews", "pearson", "spearman"),
    "causal_language_modeling": ("perplexity",),
    "summarization": ("rouge1", "rouge2", "rougeL"),
}

Row = Mapping[str, Any]


@dataclass(frozen=True)
class DatasetSpec:
    """One entry of the registry.

    Attributes:
        name: what `--dataset` takes.
        task: the task that it is for.
        path: hub repository (namespaced, Parquet), `None` where `generate` makes the rows, or where there is no
            repository and `--dataset-saved-path` is the only source.
        config: the repository's configuration name.
        columns: the text columns, and every column that `texts`, `prompt` and `response` read. Without `texts` these
            are the one or two texts themselves for classification, and the one text for packed language modelling.
        texts: row → its one or two texts, for classification where they are not simply the columns.
        label: the label column (classification).
        labels: the label names in the order of their ids; empty for regression on a real-valued label.
        metrics: running metrics; the first one, on the first validation split, decides which checkpoint is best.
        train: name of the training split.
        validation: names of the validation splits; empty: a fixed 5% of the training split is held out.
        test: name of the test split; `None` where its labels are hidden (the validation splits then stand in).
        official: `<metric module>/<configuration>` under `dataset/official/`, e.g. `glue/rte`.
        prompt: row → prompt, for prompt → response data (instructions, summaries).
        cue: what stands between prompt and response; never cut, however long the prompt is.
        response: row → the text that the loss is taken on.
        running_text: (packed language modelling) the rows are lines of one text that keep their own line ends, so no
            end-of-sequence token goes between them; else every row is a document.
        generate: (split, seed) → rows, for data that the project makes itself.
        aliases: older names that are still read.
        summary: one line for `--help` and the README.
    """

    name: str
    task: Task
    columns: tuple[str, ...]
    metrics: tuple[str, ...]
    path: str | None = None
    config: str | None = None
    texts: Callable[[Row], tuple[str, ...]] | None = None
    label: str = "label"
    labels: tuple[str, ...] = ()
    train: str = "train"
    validation: tuple[str, ...] = ("validation",)
    test: str | None = "test"
    official: str | None = None
    prompt: Callable[[Row], str] | None = None
    cue: str = ""
    response: Callable[[Row], str] | None = None
    running_text: bool = False
    generate: Callable[[str, int], list[dict[str, Any]]] | None = None
    aliases: tuple[str, ...] = field(default=())
    summary: str = ""

    def __post_init__(self) -> None:
        """Refuses an entry that contradicts itself: a user's own entry is written by hand."""
        entry = f"data set '{self.name}'"
        if self.task not in TASKS:
            raise UserError(f"{entry} has task '{self.task}'", nearest(self.task, TASKS))
        for metric in self.metrics:
            if metric not in METRICS[self.task]:
                raise UserError(f"{entry} has metric '{metric}'", nearest(metric, METRICS[self.task]))
        if not self.metrics or not self.columns:
            raise UserError(f"{entry} has no metrics or no columns", "name at least one of each")
        if (self.prompt is None) != (self.response is None):
            raise UserError(f"{entry} has only one of prompt and response", "give both, or neither")
        if self.task == "classification" and self.prompt is not None:
            raise UserError(f"{entry} classifies, and has a prompt", "give columns or texts, and a label")
        if self.task == "summarization" and self.prompt is None:
            raise UserError(f"{entry} summarises without a prompt", "give prompt and response")
        widest = {"classification": 2, "causal_language_modeling": 1}.get(self.task)
        if widest and not (self.texts or self.prompt) and len(self.columns) > widest:
            raise UserError(f"{entry} has {len(self.columns)} text columns", f"give at most {widest}, or a function")

    @property
    def num_labels(self) -> int:
        """Width of the classification head: 1 for regression."""
        return max(1, len(self.labels))

    @property
    def regression(self) -> bool:
        return self.task == "classification" and not self.labels

    @property
    def pair(self) -> bool:
        """Whether a row has two texts, without `texts`; with it the rows themselves say."""
        return self.texts is None and len(self.columns) == 2
