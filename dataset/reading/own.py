"""Own data: from a file, a folder or a hub name, and options about its columns, to an entry as in the registry.

The options that are not given are filled in. They are recorded with the run, so that later commands get the same entry
from the record, without a look at the data.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

from dataset import registry
from dataset.choices import GAP, Choices
from dataset.reading.roles import Roles, check_columns, given_roles, joined_names, label_names, roles_of
from dataset.reading.splits import SUFFIXES, files_by_split
from dataset.spec import CHOICE_METRICS, SET_METRICS, DatasetSpec, Row
from heterolora.elements.task import TASKS, Task
from options.data import OwnDataOptions

CUE = "\n"  # between prompt and response
_HUB = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")


def name_of(dataset: str) -> str:
    """Return the name of a data set: of its entry, or of its file, folder or repository."""
    if (entry := registry.find(dataset)) is not None:
        return entry.name
    place = Path(dataset.partition(":")[0] if _on_hub(dataset) else os.path.abspath(dataset))
    return place.stem if place.suffix in SUFFIXES else place.name  # v1.0 is a name


def same_data(one: str, other: str) -> bool:
    """Whether two values of `--dataset` name the same data set, perhaps by different paths or an alias."""

    def resolved(dataset: str) -> str:
        entry = registry.find(dataset)
        return os.path.realpath(os.path.expanduser(dataset)) if entry is None else entry.name

    return resolved(one) == resolved(other)


def check_name(dataset: str) -> None:
    """Raise UserError if `--dataset` is neither the name of an entry, nor a path, nor a name as on the hub."""
    if not (_is_path(dataset) or _on_hub(dataset)):
        registry.get(dataset)


def from_anywhere(dataset: str) -> str:
    """Return the value of `--dataset` that names the same own data from every folder."""
    return os.path.abspath(os.path.expanduser(dataset)) if _is_path(dataset) else dataset


def describe(
    dataset: str,
    own: OwnDataOptions,
    task: Task | None,
    cache: bool,
    classes: tuple[str, ...] = (),
    buffer: int | None = None,
) -> tuple[DatasetSpec, OwnDataOptions]:
    """Return the entry of own data, and the options with the values that were found.

    The data are read only for options that are not given. Raises UserError if they cannot be read, if a column is not
    there, or if there is more than one choice.

    Args:
        classes: those of a trained head. Labels that are found among them keep its order.
        buffer: read so many training rows at once, with `--streaming`. None: read all.
    """
    roles, labels = given_roles(own, task), label_names(own)
    needs_labels, multi_label = not labels and not own.regression, bool(own.multi_label)
    if roles is not None and not (roles.classifies and needs_labels):
        return _described(dataset, own, roles, labels, multi_label)
    from dataset.reading.labels import found_labels
    from dataset.reading.streamed import opened_splits

    name, of_any_roles = name_of(dataset), roles or Roles("causal_language_modeling", ("text",))
    opened = opened_splits(spec_of(dataset, of_any_roles, ()), buffer=buffer)
    train = opened["train"] if "train" in opened else next(iter(opened.values()))
    columns = train.columns()
    roles = roles or roles_of(columns, own, task, name)
    check_columns(roles, columns, name)
    if roles.label is not None and roles.classifies and needs_labels:
        rows = train.read(spec_of(dataset, roles, ()).wanted, cache)
        where = f"data set '{name}'"
        labels, multi_label = found_labels(where, rows, roles.label, own.regression is None, own.multi_label)
        if labels and {*labels} <= {*classes}:
            labels = classes
    spec, filled = _described(dataset, own, roles, labels, multi_label)
    return replace(spec, opened=opened), filled


def _described(
    dataset: str, own: OwnDataOptions, roles: Roles, labels: tuple[str, ...], multi_label: bool
) -> tuple[DatasetSpec, OwnDataOptions]:
    filled = replace(
        own,
        text_columns=own.text_columns or joined_names(roles.texts) or None,
        label_column=roles.label,
        labels=own.labels or joined_names(labels) or None,
        regression=not labels if roles.classifies else None,
        multi_label=multi_label if roles.classifies else None,
        prompt_column=own.prompt_column or joined_names(roles.prompt) or None,
        response_column=roles.response,
        messages_column=roles.messages,
        choices_column=roles.choices,
    )
    return replace(spec_of(dataset, roles, labels, multi_label), drop_incomplete=own.drop_incomplete), filled


def spec_of(dataset: str, roles: Roles, labels: tuple[str, ...], multi_label: bool = False) -> DatasetSpec:
    where = location(dataset)
    metrics = TASKS[roles.task].metrics
    if roles.choices is not None:
        metrics = CHOICE_METRICS
    elif roles.classifies:
        of_classes = ("accuracy", "f1" if len(labels) == 2 else "macro_f1")
        of_classes = SET_METRICS if multi_label else of_classes
        metrics = of_classes if labels else ("pearson", "spearman", "rmse", "mae")
    answers = roles.response is not None
    return DatasetSpec(
        name=name_of(dataset),
        task=roles.task,
        columns=roles.columns,
        metrics=metrics,
        label=roles.label or "label",
        labels=labels,
        multi_label=multi_label,
        validation=(),
        prompt=partial(paragraphs, roles.prompt) if roles.prompt else None,
        cue=CUE if answers else GAP if roles.choices is not None else "",
        response=itemgetter(roles.response) if answers else None,
        choices=None if roles.choices is None else Choices(itemgetter(roles.choices), nested=(roles.choices,)),
        running_text=where["place"] is not None and _is_txt(where["place"]),
        chat=roles.messages is not None,
        own=True,
        **where,
    )


def location(dataset: str) -> dict[str, Any]:
    """Return the fields of an entry that say where own data are: in a file or folder, or on the hub."""
    path, _, config = dataset.partition(":") if _on_hub(dataset) else (None, "", None)
    return {"path": path, "config": config or None, "place": None if path else Path(dataset)}


def paragraphs(columns: tuple[str, ...], row: Row) -> str:
    """Return the texts of the columns on lines of their own, without those that are empty or missing."""
    return "\n".join(row[column] for column in columns if row[column])


def _on_hub(dataset: str) -> bool:
    return not _is_path(dataset) and _HUB.fullmatch(dataset) is not None


def _is_path(dataset: str) -> bool:
    return dataset.startswith((".", "/", "~")) or os.path.exists(dataset) or Path(dataset).suffix in SUFFIXES


def _is_txt(place: Path) -> bool:
    """Whether the training rows are the lines of txt files, which `dataset.reading.stored` finds in the same way."""
    folder = Path(os.path.expanduser(place))
    if not folder.is_dir():
        return place.suffix == ".txt"
    for inside in (folder, folder / "data"):
        if suffixes := {split: paths[0].suffix for split, paths in files_by_split(inside).items()}:
            return suffixes.get("train", min(suffixes.values())) == ".txt"
    return False
