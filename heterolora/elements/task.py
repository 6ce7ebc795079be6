"""The tasks. To add one, add a row here, and to `model/task/` a file of the same name with its class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Task = str  # a key of TASKS, such as `classification`


@dataclass(frozen=True)
class TaskSpec:
    """What the program must know about a task.

    Attributes:
        metrics: the metrics that a data set of the task may name.
        network: the class of transformers that builds its networks.
        peft_type: PEFT's name of the task; `peft_type_of_two`: of an encoder-decoder, if it is another one.
        pipeline: the hub's name of the task.
        classifies: whether its networks have a head for the data set's labels, which is trained. Others predict tokens.
        generates: whether its metrics compare generated text.
    """

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


TASKS: Mapping[Task, TaskSpec] = {
    "classification": TaskSpec(
        metrics=("accuracy", "f1", "macro_f1", "matthews", "pearson", "spearman", "rmse", "mae"),
        network="AutoModelForSequenceClassification",
        peft_type="SEQ_CLS",
        pipeline="text-classification",
        classifies=True,
    ),
    "causal_language_modeling": TaskSpec(
        metrics=("perplexity",), network="AutoModelForCausalLM", peft_type="CAUSAL_LM", pipeline="text-generation"
    ),
    "summarization": TaskSpec(
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
