"""Writes the model card, the README.md of an adapter folder. `card.md.j2` has its text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from transformers import PreTrainedModel

from dataset.spec import DatasetSpec
from heterolora.elements.element import KINDS, Place, order_of
from heterolora.elements.peft_config import peft_notes
from heterolora.elements.search_space import SearchSpace
from heterolora.elements.task import TASKS
from model.checkpoint import ModelRecord, base_location
from model.load import base_dtype
from model.parameters import count
from options.actions import as_started

_KINDS = {"lora": "LoRA", "shortcut": "shortcuts"}


@dataclass(frozen=True)
class Described:
    """The result that a card describes.

    Attributes:
        metrics: values by split and metric, if they are known.
        configurations: the configuration files with their descriptions.
        pictures: image files of the folder.
        also: how another program than PEFT loads the adapter, as a section of the card.
    """

    network: PreTrainedModel
    space: SearchSpace
    spec: DatasetSpec
    record: ModelRecord
    metrics: Mapping[str, Mapping[str, float | None]] | None = None
    configurations: Sequence[str] = ()
    pictures: Sequence[str] = ()
    also: str = ""

    @property
    def beyond_peft(self) -> bool:
        """Whether the files of PEFT do not describe the whole model."""
        return self.record.renormalizes or bool(self.space.on("shortcut"))


def card(result: Described) -> str:
    """Return the text of the file."""
    base, lora = base_location(result.record.base.name), result.space.on("lora")
    places, ranks = _allocation(result.space)
    text = _template().render(
        {name: getattr(result, name) for name in ("network", "spec", "record", "pictures", "also", "beyond_peft")},
        task=TASKS[result.spec.task],
        base=repr(base),
        base_name=Path(base).name,
        quoted_base=json.dumps(base),  # a JSON text is a YAML text
        shortcuts_on=result.space.on("shortcut"),
        lora_on=lora,
        notes=peft_notes([low_rank.element for low_rank in lora]),
        facts=[*_facts(result), *_choice(result.record)],
        places=places,
        ranks=ranks,
        metrics=_metrics(result),
        arguments=_arguments(result, base),
    )
    return as_started(text)


def _template() -> Any:
    folder = FileSystemLoader(Path(__file__).parent)
    made = Environment(
        loader=folder, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    made.filters["escaped"] = lambda cell: str(cell).replace("|", "\\|")
    return made.get_template("card.md.j2")


def _facts(result: Described) -> Iterator[tuple[str, str]]:
    record, spec = result.record, result.spec
    yield "base", f"`{record.base.name}`"
    yield "base SHA-256", f"`{record.base_sha256}`"
    yield "data", f"`{spec.name}` ({spec.task.replace('_', ' ')})"
    yield from (("configuration", text) for text in result.configurations)
    total = count(result.network, result.space).total
    for kind in KINDS:
        chosen = [low_rank.element for low_rank in result.space.on(kind)]
        rank, parameters = sum(each.rank for each in chosen), sum(each.parameters for each in chosen)
        if result.space.of_kind(kind):
            on = f"{len(chosen)} of {len(result.space.places(kind))} elements on, rank {rank:,} in all"
            share = f"{parameters:,} parameters ({100 * parameters / total:.2g}% of the model's)"
            yield f"budget, {_KINDS[kind]}", f"{on}, {share}"


def _choice(record: ModelRecord) -> Iterator[tuple[str, str]]:
    """How a dynamic run chose its elements."""
    options = record.options
    if record.action == "train-dyrealloc":
        yield "heuristic", f"{options.get('importance_test_name')}, repeatedly during training"
        if options.get("budget_schedule") == "shrink":
            yield "schedule", "every element was on at the start, and the weakest were turned off"
        if (rise := options.get("shrink_tolerance")) is not None:
            yield "rise of the validation loss allowed", f"{rise:g}"
        elif (parameters := options.get("budget_parameters")) is not None:
            yield "parameters turned on", f"at most {parameters:,}"
        elif (time := options.get("budget_time")) is not None:
            yield "step time", f"at most {time} of that with all elements on"
        else:
            yield "share turned on", f"{options.get('turn_on_percentile')}"


def _allocation(space: SearchSpace) -> tuple[list[str], list[list[Any]]]:
    """Return the names of the places, and for each block its number and ranks (`·`: off, empty: no such place)."""
    ranks: dict[tuple[int, str], Any] = {(place.layer, place.name): "·" for place in space.places()}
    ranks |= {(each.element.layer, each.element.name): each.element.rank for each in space.on()}
    names = sorted({name for _, name in ranks}, key=order_of)
    layers = sorted({*range(len(space.blocks)), *(layer for layer, _ in ranks)})
    return names, [[Place(layer, "").block, *(ranks.get((layer, name), "") for name in names)] for layer in layers]


def _metrics(result: Described) -> list[tuple[str, str, str]]:
    return [
        (split, name, "–" if value is None else f"{value:.4f}")
        for split, values in (result.metrics or {}).items()
        for name, value in values.items()
    ]


def _arguments(result: Described, base: str) -> str:
    """The arguments with which transformers loads the base."""
    spec = result.spec
    dtype = str(base_dtype(str(result.record.options.get("precision", "32")))).removeprefix("torch.")
    labels = f"id2label={dict(enumerate(spec.labels))!r}" if spec.labels else f"num_labels={spec.num_labels}"
    labels += ", problem_type='multi_label_classification'" if spec.multi_label else ""
    return ", ".join([repr(base), f"dtype={dtype!r}", *([labels] if spec.classifies else [])])
