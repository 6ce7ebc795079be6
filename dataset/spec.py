"""The description of a data set as one declarative entry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataset.choices import Choices
from heterolora.common.errors import UserError, nearest
from heterolora.elements.task import TASKS, Task

CHOICE_METRICS = ("accuracy", "accuracy_norm")  # of multiple choice
SET_METRICS = ("micro_f1", "macro_f1")  # of multi-label classification

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Wanted:
    """The columns that are read from a file.

    Attributes:
        texts: the columns of text.
        label: the label column.
        nested: those of `texts` that hold lists or objects.
        label_may_be_text: whether a whole number in the label column of a csv file stays text.
    """

    texts: tuple[str, ...]
    label: str | None = None
    nested: tuple[str, ...] = ()
    label_may_be_text: bool = False

    @property
    def columns(self) -> list[str]:
        return [*self.texts, *([self.label] if self.label else [])]


@dataclass(frozen=True)
class DatasetSpec:
    """One entry of the registry.

    Attributes:
        name: the value of `--dataset`.
        task: the task of the data set.
        columns: the text columns, and every column that `texts`, `prompt` and `response` read. `response` reads the
            last one alone. Without these functions: one or two text columns for classification, and one for packed
            language modelling.
        metrics: running metrics. The first one, on the first validation split, selects the best checkpoint.
        path: hub repository with a namespace, in Parquet. `None` if `generate` makes the rows, or if
            `--dataset-saved-path` is the only source.
        config: configuration name of the repository.
        texts: function of a row that returns its one or two texts, for classification of other texts than `columns`.
        label: name of the label column (classification and multiple choice).
        labels: names of the classes in the order of their ids. Empty for regression.
        multi_label: (classification of own data) a row has any number of the labels.
        train: name of the training split.
        validation: names of the validation splits. Empty: a fixed 5% of the training split is held out.
        test: name of the test split. `None` if there is none with labels: the validation splits replace it.
        hidden_test: the benchmark does not publish the labels of its test split.
        official: name of the official metric in `dataset/official.py`, e.g. `glue/rte`.
        prompt: function of a row that returns the prompt, for instructions, summaries and multiple choice.
        cue: text between prompt and response. It is never truncated.
        response: function of a row that returns the text that the loss is taken on.
        choices: (language modelling) the choices of each row, of which the label column names the right one. The loss
            is taken on the right one. The metrics compare how likely all of them are after the prompt.
        running_text: (packed language modelling) the rows are lines of one text and keep their line ends, so no
            end-of-sequence token separates them. Otherwise every row is a document.
        chat: (language modelling) the only column holds conversations; see `dataset.encoding.chat`.
        generate: function of split and seed that returns the rows, for built-in data.
        aliases: old names that `--dataset` still accepts.
        own: the entry describes own data, see `dataset.reading.own`. The label column holds the names of classes, also
            if they are numbers, and validation and test splits are found by their usual names.
        place: file or folder of own data.
        drop_incomplete: whether rows of own data without a label or a text are left out.
        opened: the splits of own data by name (`dataset.reading.stored.Stored`), if they were opened to describe it.
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
    multi_label: bool = False
    train: str = "train"
    validation: tuple[str, ...] = ("validation",)
    test: str | None = "test"
    hidden_test: bool = False
    official: str | None = None
    prompt: Callable[[Row], str] | None = None
    cue: str = ""
    response: Callable[[Row], str] | None = None
    choices: Choices | None = None
    running_text: bool = False
    chat: bool = False
    generate: Callable[[str, int], list[dict[str, Any]]] | None = None
    aliases: tuple[str, ...] = ()
    own: bool = False
    place: Path | None = None
    drop_incomplete: bool = False
    opened: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)
    summary: str = ""

    def __post_init__(self) -> None:
        """Raise UserError if the entry contradicts itself."""

        def require(right: bool, found: str, expected: str) -> None:
            if not right:
                raise UserError(f"data set '{self.name}' {found}", expected)

        require(self.task in TASKS, f"has task '{self.task}'", nearest(self.task, TASKS))
        for metric in self.metrics:
            known = TASKS[self.task].metrics if self.choices is None else CHOICE_METRICS
            require(metric in known, f"has metric '{metric}'", nearest(metric, known))
        require(bool(self.metrics and self.columns), "has no metrics or no columns", "name at least one of each")
        prompted, classifies = self.prompt is not None, self.classifies
        chooses, models = self.choices is not None, self.task == "causal_language_modeling"
        require(
            not chooses or (models and prompted), "has choices without a prompt", "give a prompt to a language model"
        )
        both_or_none = prompted == (self.response is not None or chooses)
        require(both_or_none, "has only one of prompt and response", "give both, or neither")
        require(not (chooses and self.response), "has both choices and a response", "leave one of them out")
        read = {*self.nested, *([self.choices.group] if self.choices and self.choices.group else [])}
        lacks = ", ".join(sorted(read - {*self.columns}))
        require(not lacks, f"has choices from other columns than its own ({lacks})", "name them in columns too")
        require(not (classifies and prompted), "classifies and has a prompt", "give columns or texts, and a label")
        require(not self.generates or prompted, "summarises without a prompt", "give prompt and response")
        most, columns = 2 if classifies else 1, len(self.columns)
        few = bool(self.texts) or prompted or columns <= most
        require(few, f"has {columns} text columns", f"give at most {most}, or a function")
        require(not self.chat or (models and not prompted), "has conversations for another task", "leave chat out")

    @property
    def wanted(self) -> Wanted:
        """The columns that are read from a file. The label of a question in own data may be the text of a choice."""
        return Wanted(self.columns, self.label_column, self.nested, self.own and self.choices is not None)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns that a trained model reads to predict: neither a label nor a response."""
        return self.columns if self.response is None else self.columns[:-1]

    @property
    def writes_text(self) -> bool:
        """Whether a prediction is generated text."""
        return not self.classifies and self.choices is None

    @property
    def num_labels(self) -> int:
        """Width of the classification head, which is 1 for regression."""
        return max(1, len(self.labels))

    @property
    def classifies(self) -> bool:
        """Whether the networks of its task have a head for its labels."""
        return TASKS[self.task].classifies

    @property
    def generates(self) -> bool:
        """Whether the metrics of its task compare generated text."""
        return TASKS[self.task].generates

    @property
    def regression(self) -> bool:
        return self.classifies and not self.labels

    @property
    def single_label(self) -> bool:
        """Whether each row belongs to one class."""
        return self.classifies and not self.regression and not self.multi_label

    @property
    def packed(self) -> bool:
        """Whether the texts are packed into full blocks, so that rows and encoded rows differ in number."""
        return self.task == "causal_language_modeling" and self.prompt is None and not self.chat

    @property
    def label_column(self) -> str | None:
        return self.label if self.classifies or self.choices is not None else None

    @property
    def nested(self) -> tuple[str, ...]:
        """The columns that hold lists or objects. They are kept as JSON text until a function needs them."""
        if self.choices is not None:
            return self.choices.nested
        return self.columns if self.chat else ()
