"""What the columns of own data are for, from their names, what they hold, and the options."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dataset.registry import COLUMN_FLAGS
from heterolora.common.errors import UserError, nearest
from heterolora.elements.task import TASKS, Task
from options.data import OwnDataOptions
from options.declare import flag_of

if TYPE_CHECKING:
    from dataset.reading.columns import ColumnKind

#: The names of columns that are recognised without options. Capitals and spaces around a name do not matter.
TEXT, LABEL, MESSAGES = "text", ("label", "labels"), ("messages", "conversations")
PROMPT, INSTRUCTION, INPUTS = "prompt", "instruction", ("input", "context")  # an instruction may have an input
RESPONSES = ("response", "completion", "output")
_GROUPS: Mapping[str, tuple[str, ...]] = {  # a kind of data -> the options that describe it
    "texts": ("text_columns", "label_column", "labels", "regression", "multi_label"),
    "prompts with responses": ("prompt_column", "response_column"),
    "conversations": ("messages_column",),
    "questions with choices": ("choices_column",),
}
_OF_CHOICES = ("prompt_column", "label_column")  # with `choices_column`, they describe the questions


@dataclass(frozen=True)
class Roles:
    """The columns of own data. `texts` are the texts; with a prompt, or conversations, it is empty.

    A prompt may be in several columns.
    """

    task: Task
    texts: tuple[str, ...] = ()
    label: str | None = None
    prompt: tuple[str, ...] = ()
    response: str | None = None
    messages: str | None = None
    choices: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        last = self.response or self.choices or self.messages
        return self.texts or (*self.prompt, *((last,) if last else ()))

    @property
    def classifies(self) -> bool:
        return self.task == "classification"


def split_names(text: str | None) -> tuple[str, ...]:
    """Return names that commas separate. A name with a comma is in quotation marks, as in a csv file."""
    if text is None:
        return ()
    try:
        return tuple(next(csv.reader([text], skipinitialspace=True), ()))
    except csv.Error as error:
        raise UserError(f"'{text[:60]}' cannot be read as names ({error})", "separate names by commas") from error


def joined_names(names: tuple[str, ...]) -> str:
    """Return the text that `split_names` reads."""
    return ",".join(
        '"' + name.replace('"', '""') + '"' if name != name.strip() or set(name) & set(',"') else name for name in names
    )


def label_names(own: OwnDataOptions) -> tuple[str, ...]:
    """Return the names of `--labels`."""
    return tuple(name.strip() for name in split_names(own.labels))


def given_roles(own: OwnDataOptions, task: Task | None) -> Roles | None:
    """Return the roles if the options state all of them, without a look at the data. Otherwise None.

    Raises UserError if options contradict each other or the task.
    """
    given = [name for names in _GROUPS.values() for name in names if getattr(own, name) is not None]
    if own.choices_column is not None:
        given = [name for name in given if name not in _OF_CHOICES]
    described = [kind for kind, names in _GROUPS.items() if {*names} & {*given}]
    if len(described) > 1:
        first, second = (next(flag_of(name) for name in _GROUPS[kind] if name in given) for kind in described[:2])
        raise UserError(f"{first} and {second} are both given", f"give the columns of {' or of '.join(described[:2])}")
    if len(texts := split_names(own.text_columns)) > 2 or not all(texts):
        raise UserError(f"--text-columns {own.text_columns} names {len(texts)} columns", "name one, or two for pairs")
    if own.labels is not None and (len(set(names := label_names(own))) < max(2, len(names)) or own.regression):
        raise UserError(
            f"--labels {own.labels} does not name classes", "give at least two different labels, without --regression"
        )
    if own.multi_label and own.regression:
        raise UserError("--multi-label and --regression are both given", "several labels a row are no numbers")
    if not all(prompt := split_names(own.prompt_column)):
        raise UserError(f"--prompt-column {own.prompt_column} names an empty column", "separate names by one comma")
    if own.messages_column is not None:
        return _fits(Roles("causal_language_modeling", messages=own.messages_column), task)
    if own.choices_column is not None:
        return _questions(own.choices_column, prompt, own.label_column, task)
    if prompt and own.response_column is not None:
        return _fits(_answers(prompt, own.response_column, task), task)
    if texts and own.label_column is not None:
        return _fits(Roles("classification", texts, own.label_column), task)
    if texts and task == "causal_language_modeling" and not _labelled(own):
        return _fits(Roles("causal_language_modeling", texts), task)
    return None


def roles_of(columns: Mapping[str, ColumnKind], own: OwnDataOptions, task: Task | None, name: str) -> Roles:
    """Return the roles of the columns of the data set `name`: as given, and as the only choice where they are not.

    Raises UserError if there are several choices, or none.
    """
    if (given := given_roles(own, task)) is not None:
        return given
    every, columns = columns, _top_level(columns)  # a field of an object is never the obvious choice
    prompt = split_names(own.prompt_column) or _prompt(columns)
    if own.choices_column is not None:
        found = _questions(own.choices_column, prompt, own.label_column or called(columns, *LABEL), task)
        if found is None:
            raise UserError("--choices-column needs --prompt-column and --label-column", _candidates(every))
        return found
    answering = own.prompt_column or own.response_column
    described = answering or any(getattr(own, option) is not None for option in _GROUPS["texts"])
    messages = called(columns, *MESSAGES)
    if not described and task in (None, "causal_language_modeling") and messages is not None:
        return Roles("causal_language_modeling", messages=messages)
    response = own.response_column or called(columns, *RESPONSES)
    if answering or (not described and task != "classification" and prompt and response):
        if not prompt or response is None:
            missing = "--response-column" if prompt else "--prompt-column"
            raise UserError(f"{missing} is missing", _candidates(every))
        if not answering and (rating := called(columns, *LABEL)) is not None:  # as for KTO, of good and bad responses
            what = f"'{response}' may be the response to train on, or a text with the label '{rating}'"
            raise UserError(f"the columns of data set '{name}' have no obvious meaning: {what}", _candidates(every))
        return _fits(_answers(prompt, response, task), task)
    label = own.label_column or (None if task == "causal_language_modeling" else called(columns, *LABEL))
    texts = split_names(own.text_columns) or _texts(columns, label)
    if label is not None and texts:
        return _fits(Roles("classification", texts, label), task)
    alone = len(columns) == 1 or own.text_columns is None or task == "causal_language_modeling"
    if len(texts) == 1 and alone and not _labelled(own) and task in (None, "causal_language_modeling"):
        return Roles("causal_language_modeling", texts)
    if texts:
        what = "no column is named 'label'"
    elif label is None:
        what = "none is named 'text', 'label', 'prompt', 'instruction', 'messages' or 'conversations'"
    else:
        what = "several columns may hold the text" if "text" in columns.values() else "no column holds text"
    raise UserError(f"the columns of data set '{name}' have no obvious meaning: {what}", _candidates(every))


def _labelled(own: OwnDataOptions) -> bool:
    """Whether an option says what the labels are."""
    return any(value is not None for value in (own.labels, own.regression, own.multi_label))


def _top_level(columns: Mapping[str, ColumnKind]) -> dict[str, ColumnKind]:
    """Return the columns without the fields of objects in them, such as `review.text`."""
    return {name: kind for name, kind in columns.items() if name.rpartition(".")[0] not in columns}


def called(columns: Mapping[str, ColumnKind], *names: str) -> str | None:
    """Return the column with one of these names, or the only one that differs from them by capitals alone."""
    exact = [name for name in names if name in columns]
    found = exact or [column for column in columns if column.strip().lower() in names]
    return found[0] if exact or len(found) == 1 else None


def _prompt(columns: Mapping[str, ColumnKind]) -> tuple[str, ...]:
    """Return the column of prompts, or an instruction and its input as in Alpaca and Dolly, or nothing."""
    if (prompt := called(columns, PROMPT)) is not None:
        return (prompt,)
    found = (called(columns, INSTRUCTION), called(columns, *INPUTS))
    return tuple(name for name in found if name is not None) if found[0] is not None else ()


def _texts(columns: Mapping[str, ColumnKind], label: str | None) -> tuple[str, ...]:
    """Return the text columns if there is one choice: `text`, or all columns of text if they are one or two.

    Without labels, texts are modelled, and only `text` or a single column is an obvious choice.
    """
    if (text := called(columns, TEXT)) is not None and columns[text] == "text":
        return (text,)
    texts = tuple(name for name, kind in columns.items() if kind == "text" and name != label)
    most = 1 if label is None else 2
    return texts if len(texts) <= most and (label is not None or len(columns) == 1) else ()


def _answers(prompt: tuple[str, ...], response: str, task: Task | None) -> Roles:
    if response in prompt:
        raise UserError(f"--prompt-column and --response-column are both {response}", "give two columns")
    found: Task = "summarization" if task == "summarization" else "causal_language_modeling"
    return Roles(found, prompt=prompt, response=response)


def _questions(choices: str, prompt: tuple[str, ...], label: str | None, task: Task | None) -> Roles | None:
    """Return the roles of multiple choice. `None` if a column is not known."""
    if not prompt or label is None:
        return None
    if choices == label or {choices, label} & {*prompt}:
        given = f"--prompt-column {joined_names(prompt)}, --choices-column {choices} and --label-column {label}"
        raise UserError(f"{given} name a column twice", "give three columns")
    return _fits(Roles("causal_language_modeling", prompt=prompt, choices=choices, label=label), task)


def _fits(roles: Roles, task: Task | None) -> Roles:
    named = [*(roles.texts or roles.prompt), roles.label]
    if twice := next((name for name in named if named.count(name) > 1), None):
        flags = "--text-columns and --label-column" if roles.texts else "the names in --prompt-column"
        raise UserError(f"the column '{twice}' is given twice", f"give each of {flags} another")
    if task not in (None, roles.task):
        raise UserError(
            f"--task {task} does not fit the columns {', '.join(roles.columns)}",
            f"with them a model learns to {TASKS[roles.task].words}: name others, or leave --task out",
        )
    return roles


def _candidates(columns: Mapping[str, ColumnKind]) -> str:
    listing = ", ".join(f"{name} ({kind})" for name, kind in columns.items() if name.isprintable())
    return f"give {COLUMN_FLAGS}; the columns are {listing}"


def check_columns(roles: Roles, columns: Mapping[str, ColumnKind], name: str) -> None:
    """Raise UserError if a column is not there, or if config.toml cannot hold its name."""
    for column in (*roles.columns, *((roles.label,) if roles.label else ())):
        if not column.isprintable():
            raise UserError(f"data set '{name}' has the column {column!r}", "give it a name without control characters")
        if column not in columns:
            raise UserError(
                f"data set '{name}' has no column '{column}'", nearest(column, filter(str.isprintable, columns))
            )
