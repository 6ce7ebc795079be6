"""What a data set is, in one declarative entry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Task = Literal["classification", "causal_language_modeling", "summarization"]
TASKS: tuple[Task, ...] = ("classification", "causal_language_modeling", "summarization")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class DatasetSpec:
    """One entry of the registry.

    Attributes:
        name: what `--dataset` takes.
        task: the task that it is for.
        path: hub repository (namespaced, Parquet), `None` where `generate` makes the rows.
        config: the repository's configuration name.
        columns: the text columns: one or two for classification, one for packed language modelling; for
            prompt → response data, every column that `prompt` and `response` read.
        label: the label column (classification).
        labels: the label names in the order of their ids; empty for regression on a real-valued label.
        metrics: running metrics; the first one, on the first validation split, decides which checkpoint is best.
        train: name of the training split.
        validation: names of the validation splits; empty: a seeded 5% of the training split is held out.
        test: name of the test split; `None` where its labels are hidden (the validation splits then stand in).
        official: `<metric module>/<configuration>` under `dataset/official/`, e.g. `glue/rte`.
        prompt: row → prompt, for prompt → response data (instructions, summaries).
        response: row → the text that the loss is taken on.
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
    label: str = "label"
    labels: tuple[str, ...] = ()
    train: str = "train"
    validation: tuple[str, ...] = ("validation",)
    test: str | None = "test"
    official: str | None = None
    prompt: Callable[[Row], str] | None = None
    response: Callable[[Row], str] | None = None
    generate: Callable[[str, int], list[dict[str, Any]]] | None = None
    aliases: tuple[str, ...] = field(default=())
    summary: str = ""

    @property
    def num_labels(self) -> int:
        """Width of the classification head: 1 for regression."""
        return max(1, len(self.labels))

    @property
    def regression(self) -> bool:
        return self.task == "classification" and not self.labels
