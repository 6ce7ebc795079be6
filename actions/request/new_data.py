"""The data that a trained model predicts on: rows of another place, with the columns and classes of its own data.

The training data are not read. What is known of them is in the record of the checkpoint or adapter. A base model, and
an adapter of another program, have no record: then the configuration of the model names the task and the classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import model.family as families
from actions.command.command import Command
from actions.request.data import Data
from actions.request.origin import Origin
from dataset import registry
from dataset.reading.own import describe, location, name_of, paragraphs, spec_of
from dataset.reading.roles import INSTRUCTION, MESSAGES, PROMPT, TEXT, Roles, called, label_names, split_names
from dataset.spec import DatasetSpec
from heterolora.common.errors import UserError, nearest
from heterolora.elements.task import TASKS, Task
from options.actions import CHAT
from options.data import OwnDataOptions

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from dataset.reading.columns import ColumnKind

_LANGUAGE = "causal_language_modeling"


def new_data_of(command: Command, values: Mapping[str, Any], origin: Origin) -> Data:
    """The data set of `predict` or `chat`, with the task and the columns of the model's own data."""
    place = None if command.action == CHAT else _place(command)
    recorded = origin.recorded.get("dataset")
    if not isinstance(recorded, str):
        spec = _of_base(values, origin, place)
    elif (entry := registry.find(recorded)) is not None:
        spec = _of_entry(entry, command.given)
    else:
        own = OwnDataOptions(**{found.name: values[found.name] for found in fields(OwnDataOptions)})
        spec, _ = describe(recorded, own, values["task"], cache=False)
    if place is None and spec.packed and (command.action == CHAT or not isinstance(recorded, str)):
        spec = replace(spec, chat=_has_chat_template(origin))
    if place is not None:
        running_text = spec_of(place, Roles(_LANGUAGE, (TEXT,)), ()).running_text
        spec = replace(spec, name=name_of(place), **location(place), opened=None, running_text=running_text)
    notes = ("the examples of --few-shot are of the training data, which is not read: questions have none",)
    few_shot = spec.choices is not None and values["few_shot"]
    return Data(replace(spec, own=True, generate=None), {"task": spec.task, "few_shot": 0}, notes if few_shot else ())


def _has_chat_template(origin: Origin) -> bool:
    from model.base_config import read_config
    from model.load import load_tokenizer

    name = origin.base.name
    return load_tokenizer(name, read_config(name)).chat_template is not None


def _place(command: Command) -> str | None:
    """The file, folder or hub name of the rows; None for `--text`. Raises UserError unless one of them is given."""
    dataset, texts = command.given.get("dataset"), command.values["text"]
    if texts and "dataset" in command.typed:
        raise UserError("--dataset and --text are both given", "give one of them")
    if texts:
        return None
    if dataset is None:
        raise UserError("there is nothing to predict", "give --dataset a file of rows, or --text")
    if registry.is_known(dataset):
        raise UserError(
            f"--dataset {dataset} is a data set of the program, with labels",
            "give predict a file of rows, or measure it: python -m main test --row-results",
        )
    return str(dataset)


# ---- a run on a data set of the program


def _of_entry(entry: DatasetSpec, given: Mapping[str, Any]) -> DatasetSpec:
    """The entry, with the columns that are given instead of its own."""
    named = {name: split_names(given[name]) for name in ("text_columns", "prompt_column") if given.get(name)}
    if not named:
        return entry
    (name, columns), *_ = named.items()
    reads = len(entry.columns) if entry.texts is None else 2
    if name == "prompt_column" and entry.response is not None:
        return replace(entry, columns=(*columns, entry.columns[-1]), prompt=partial(paragraphs, columns))
    if name == "text_columns" and entry.prompt is None and not entry.chat and len(columns) == reads:
        return replace(entry, columns=columns, texts=None)
    flag = f"--{name.replace('_', '-')} {given[name]}"
    raise UserError(
        f"{flag} does not fit a model that was trained on {entry.name}", f"it reads {', '.join(entry.inputs)}"
    )


# ---- a model without a record


def _of_base(values: Mapping[str, Any], origin: Origin, place: str | None) -> DatasetSpec:
    """The data of a base model or of an adapter of another program."""
    from model.base_config import read_config

    config = read_config(origin.base.name)
    task = values["task"] or _task_of(origin, config)
    labels: tuple[str, ...] = ()
    multi_label = config.problem_type == "multi_label_classification"
    if TASKS[task].classifies:
        own = OwnDataOptions(labels=values["labels"])
        labels = label_names(own) or _classes(origin, config.id2label or {})
    return spec_of(place or TEXT, _roles(values, task, place), labels, multi_label and bool(labels))


def _task_of(origin: Origin, config: PretrainedConfig) -> Task:
    """The task of the adapter, or of the class whose weights a folder holds. A decoder's other task is language."""
    heads = tuple(config.architectures or ())
    for name, task in TASKS.items():
        head = task.network.removeprefix("AutoModel")  # such as ForCausalLM
        of_adapter = origin.adapter is not None and origin.adapter.settings.task_type in task.peft_types
        if of_adapter or (origin.adapter is None and any(each.endswith(head) for each in heads)):
            return name
    family = families.for_model_type(config.model_type)
    if origin.adapter is None and family is not None and _LANGUAGE in family.tasks:
        return _LANGUAGE
    expected = f"give --load a run, or --task: {', '.join(TASKS)}"
    raise UserError(f"'{origin.base.name}' does not say what it predicts", expected)


def _classes(origin: Origin, stored: Mapping[Any, str]) -> tuple[str, ...]:
    """The classes in the order of their ids. Empty for one output, which is the value of a regression."""
    widths = [len(values) for values in (origin.adapter.head.values() if origin.adapter else ())]
    count = min(widths) if widths else len(stored)  # the last layer of a head is its narrowest
    names = dict(stored) if len(stored) == count else {index: f"LABEL_{index}" for index in range(count)}
    return tuple(names[index] for index in sorted(names)) if count > 1 else ()


def _roles(values: Mapping[str, Any], task: Task, place: str | None) -> Roles:
    """The columns that are given, or those with the usual names."""
    given = split_names(values["text_columns"]) or split_names(values["prompt_column"])
    columns = _columns(place) if place is not None else {}
    if TASKS[task].classifies:
        return Roles(task, given or _text(columns, (TEXT,)), "label")
    if task != _LANGUAGE:
        raise UserError("a base model does not say how its summaries are asked for", f"give --task {_LANGUAGE}")
    if values["choices_column"] is not None:
        return Roles(task, prompt=given or _text(columns, (PROMPT,)), choices=values["choices_column"], label="label")
    messages = values["messages_column"] or (None if given else called(columns, *MESSAGES))
    if messages is not None:
        return Roles(task, messages=messages)
    return Roles(task, given or _text(columns, (PROMPT, INSTRUCTION, TEXT)))


def _columns(place: str) -> Mapping[str, ColumnKind]:
    from dataset.reading.stored import stored_splits

    return next(iter(stored_splits(spec_of(place, Roles(_LANGUAGE, (TEXT,)), ())).values())).columns()


def _text(columns: Mapping[str, ColumnKind], names: tuple[str, ...]) -> tuple[str, ...]:
    """The column of one of these names, or the only one that holds text."""
    if not columns:
        return (TEXT,)
    texts = [name for name, kind in columns.items() if kind == "text"]
    found = called(columns, *names) or (texts[0] if len(texts) == 1 else None)
    if found is None:
        raise UserError("no column is obviously the text", f"give --text-columns: {nearest('', texts)}")
    return (found,)
