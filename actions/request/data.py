"""The data set of a command, compared with the data that a loaded model was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from actions.run.console import set_log_level
from dataset import registry
from dataset.reading.own import describe, from_anywhere, same_data
from dataset.reading.roles import label_names
from dataset.spec import DatasetSpec
from heterolora.common.errors import UserError
from options.actions import IMP_TEST
from options.data import OwnDataOptions
from options.every import as_plain, declared, flat

if TYPE_CHECKING:
    from actions.command.request import Request
    from actions.request.origin import Origin
    from dataset.batching.module import TextDataModule

_MOST_LISTED = 20
# Options that decide which rows are held out, and what a row is.
_SPLIT = ("task", "validation_share", "validation_seed", *(found.name for found in fields(OwnDataOptions)))


@dataclass(frozen=True)
class Data:
    """The data set of a command."""

    spec: DatasetSpec
    values: Mapping[str, Any]  # options that it decides, and those that were found in own data
    notes: tuple[str, ...] = ()  # lines to print


def data_of(values: Mapping[str, Any], origin: Origin) -> Data:
    """The data set with these values of options. Own data are read for those that are not given."""
    classes, entry, task = _trained_classes(origin.recorded), registry.find(values["dataset"]), values["task"]
    if entry is None:
        spec, found = _own_data(values, classes)
    elif task in (None, entry.task):
        spec, found = entry, {"task": entry.task, "dataset": entry.name, **flat(OwnDataOptions())}
    else:
        raise UserError(f"data set '{entry.name}' is not for --task {task}", f"it is for {entry.task}")
    return Data(spec, found, notes_on_classes(classes, spec))


def _own_data(values: Mapping[str, Any], classes: tuple[str, ...]) -> tuple[DatasetSpec, dict[str, Any]]:
    set_log_level(values["log_level"])  # `datasets` reads the data now
    given = OwnDataOptions(**{found.name: values[found.name] for found in fields(OwnDataOptions)})
    cache = not values["disable_dataset_cache"]
    buffer = values["shuffle_buffer"] if values["streaming"] else None
    spec, described = describe(values["dataset"], given, values["task"], cache, classes, buffer)
    seed = values["seed"] if values["validation_seed"] is None else values["validation_seed"]
    place = from_anywhere(values["dataset"])
    return spec, {"task": spec.task, "dataset": place, "validation_seed": seed, **flat(described)}


# ---- classes


def _trained_classes(recorded: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the classes that the head was trained with, in the order of their ids. Empty if it has none."""
    if (entry := registry.find(recorded.get("dataset", ""))) is not None:
        return _classes(entry)
    if "labels" not in recorded:
        return ()
    return label_names(OwnDataOptions(labels=declared()["labels"].from_toml("labels", recorded["labels"])))


def notes_on_classes(trained: tuple[str, ...], spec: DatasetSpec) -> tuple[str, ...]:
    """A line to print if the classes of the data are others than those of the head, or in another order. Raises
    UserError if there are more or fewer.
    """
    classes = _classes(spec)
    if classes == trained or not classes or not trained:
        return ()
    if len(classes) != len(trained):
        raise UserError(
            f"the head was trained with {len(trained)} labels ({_listing(trained)}), and {spec.name} has "
            f"{len(classes)} ({_listing(classes)})",
            "give data with these labels, or --load the base",
        )
    return (
        f"the head was trained with the labels {_listing(trained)}; those of {spec.name} are {_listing(classes)}, and "
        "are taken for them in this order",
    )


def _classes(spec: DatasetSpec) -> tuple[str, ...]:
    return spec.labels if spec.classifies else ()


def _listing(names: tuple[str, ...]) -> str:
    return ", ".join(names[:_MOST_LISTED]) + (", …" if len(names) > _MOST_LISTED else "")


# ---- rows


def notes_on_rows(request: Request, data: TextDataModule) -> tuple[str, ...]:
    """A line to print if rows are held out as in training, but from rows that have changed.

    The loader of a resumed run compares the rows itself.
    """
    checkpoint = request.checkpoint
    if checkpoint is None or request.resumes or request.action == IMP_TEST or not data.splits.held_out:
        return ()
    recorded, now = checkpoint.record.options, as_plain(request.options)
    same_split = all(now.get(name) == recorded.get(name) for name in _SPLIT)
    if not same_split or not same_data(recorded.get("dataset", ""), request.options.dataset):
        return ()
    trained = checkpoint.loader_state
    if all(trained.get(name, value) == value for name, value in data.identity.items()):  # older versions recorded less
        return ()
    return (f"the rows of {data.spec.name} have changed since training: rows that were trained on may be measured",)
