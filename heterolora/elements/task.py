"""The tasks. To add one, add a row here, and to `model/task/` a file of the same name with its class."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from heterolora.common.errors import UserError

Task = str  # a key of TASKS, such as `classification`


@dataclass(frozen=True)
class TaskSpec:
    """What the program must know about a task.

    Attributes:
        words: what a model of the task can do. Messages say it so: nobody may have asked for the task by its name.
        metrics: the metrics that a data set of the task may name.
        network: the class of transformers that builds its networks.
        peft_type: PEFT's name of the task; `peft_type_of_two`: of an encoder-decoder, if it is another one.
        pipeline: the hub's name of the task.
        classifies: whether its networks have a head for the data set's labels, which is trained. Others predict tokens.
        generates: whether its metrics compare generated text.
    """

    words: str
    metrics: tuple[str, ...]
    network: str
    peft_type: str
    pipeline: str
    classifies: bool = False
    generates: bool = False
    peft_type_of_two: str = ""

    @property
    def peft_types(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.peft_type, self.peft_type_of_two)))

    def peft_type_of(self, two_parts: bool) -> str:
        """PEFT's name of the task of an encoder-decoder (`two_parts`), or of another model."""
        return self.peft_types[-1] if two_parts else self.peft_type


TASKS: Mapping[Task, TaskSpec] = {
    "classification": TaskSpec(
        words="classify texts",
        metrics=("accuracy", "f1", "macro_f1", "micro_f1", "matthews", "pearson", "spearman", "rmse", "mae"),
        network="AutoModelForSequenceClassification",
        peft_type="SEQ_CLS",
        pipeline="text-classification",
        classifies=True,
    ),
    "causal_language_modeling": TaskSpec(
        words="write text",
        metrics=("perplexity",),
        network="AutoModelForCausalLM",
        peft_type="CAUSAL_LM",
        pipeline="text-generation",
    ),
    "summarization": TaskSpec(
        words="summarise texts",
        metrics=("rouge1", "rouge2", "rougeL"),
        network="AutoModelForCausalLM",
        peft_type="CAUSAL_LM",
        pipeline="summarization",
        generates=True,
        peft_type_of_two="SEQ_2_SEQ_LM",
    ),
}

CLASSIFYING = tuple(name for name, task in TASKS.items() if task.classifies)
GENERATING = tuple(name for name, task in TASKS.items() if task.generates)


def check_task(task: Task, model: str, possible: Collection[Task]) -> None:
    """Raise UserError unless models of the type `model` can do a task. `possible`: those that they can do."""
    if task in possible:
        return
    can = " and ".join(TASKS[name].words for name in possible)
    advice = "give data with labels (--text-columns, --label-column), or --load a decoder"
    raise UserError(f"{model} models cannot {TASKS[task].words}, they {can}", advice)
