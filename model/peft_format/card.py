"""Writes the model card, the README.md of an adapter folder."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from dataset.spec import DatasetSpec
from heterolora.elements.element import order_of
from heterolora.elements.peft_config import peft_notes
from heterolora.elements.search_space import SearchSpace
from model.checkpoint import Record, base_location
from model.load import base_dtype
from model.parameters import count
from model.skeleton import auto_class

_PIPELINES = {"classification": "text-classification", "summarization": "summarization"}


@dataclass(frozen=True)
class CardContents:
    """The result that a card describes.

    Attributes:
        metrics: values by split and metric, if they are known.
        configurations: the configuration files with their descriptions.
        pictures: image files of the folder.
        max_lora_rank: vLLM's option of that name. None for an adapter that is not in vLLM's form.
    """

    network: PreTrainedModel
    space: SearchSpace
    spec: DatasetSpec
    record: Record
    metrics: Mapping[str, Mapping[str, float | None]] | None = None
    configurations: Sequence[str] = ()
    pictures: Sequence[str] = ()
    max_lora_rank: int | None = None

    @property
    def beyond_peft(self) -> bool:
        """Whether the files of PEFT do not describe the whole model."""
        return self.record.renormalizes or bool(self.space.on("shortcut"))


def card(result: CardContents) -> str:
    """Returns the text of the file."""
    base = base_location(result.record.base.name)
    parts = [
        _front_matter(result),
        f"# LoRA for {Path(base).name}, trained on {result.spec.name}",
        *_warnings(result),
        "## Description",
        _facts(result),
        *_allocation(result),
        *_metrics(result),
        "## How to load it",
        *_in_vllm(result, base),
        *_in_peft(result, base),
        "### With the program that made it\n\nRun this in its folder. Other options are as for any checkpoint:",
        "```bash\npython -m main test --load path/to/this/folder\n```",
        "### Merged into the base",
        "This writes a plain model folder, for any program that reads `transformers` models"
        + (" (without the shortcuts: add `--drop-shortcuts`):" if result.beyond_peft else ":"),
        "```bash\npython tools/export.py path/to/the/run --format merged --output merged\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(result: CardContents) -> str:
    pipeline = _PIPELINES.get(result.spec.task, "text-generation")
    lines = ["library_name: peft", f"pipeline_tag: {pipeline}", "tags:", "- lora", "- heterolora"]
    base = json.dumps(base_location(result.record.base.name))  # a JSON text is a YAML text
    return "\n".join(["---", *lines, f"base_model: {base}", "---"])


def _warnings(result: CardContents) -> list[str]:
    warnings, base = [], result.record.base
    if result.space.on("shortcut"):
        warnings.append(
            "**This model has shortcuts that are on.** PEFT does not support shortcuts, so it loads a different model "
            "from this folder, without them. They are in `shortcuts.safetensors`, with their configuration in "
            "`shortcut.toml`. The program that made this folder loads them too."
        )
    elif result.beyond_peft:
        warnings.append(
            "**The blocks of this model normalise once more** (`renormalize` in `shortcut.toml`). PEFT does not "
            "support that, so it loads a different model from this folder. The program that made this folder loads it "
            "as it is."
        )
    if not result.space.on("lora"):
        warnings.append("**No LoRA element is on.** PEFT cannot load such an adapter.")
    if not base.pretrained or base.state_file:
        weights = f"the state dict {base.state_file}" if base.state_file else f"random, drawn from seed {base.seed}"
        warnings.append(f"**The weights of the base are {weights}**, not the weights of `{base.name}`.")
    return [*warnings, *(f"{text}." for text in peft_notes([low_rank.element for low_rank in result.space.on("lora")]))]


def _facts(result: CardContents) -> str:
    record, spec, options = result.record, result.spec, result.record.options
    rows = [
        ("base", f"`{record.base.name}`"),
        ("base SHA-256", f"`{record.base_sha256}`"),
        ("data", f"`{spec.name}` ({spec.task.replace('_', ' ')})"),
        *(("configuration", text) for text in result.configurations),
    ]
    total = count(result.network, result.space).total
    for kind, title in (("lora", "LoRA"), ("shortcut", "shortcuts")):
        chosen = [low_rank.element for low_rank in result.space.on(kind)]
        rank, parameters = sum(each.rank for each in chosen), sum(each.parameters for each in chosen)
        if result.space.of_kind(kind):
            available = len(result.space.places(kind))
            text = f"{len(chosen)} of {available} elements on, rank {rank:,} in all, {parameters:,} parameters"
            rows.append((f"budget, {title}", f"{text} ({100 * parameters / total:.2g}% of the model's)"))
    if record.action == "train-dyrealloc":
        rows.append(("heuristic", f"{options.get('importance_test_name')}, repeatedly during training"))
        if (parameters := options.get("budget_parameters")) is not None:
            rows.append(("parameters turned on", f"at most {parameters:,}"))
        elif (time := options.get("budget_time")) is not None:
            rows.append(("step time", f"at most {time} of that with all elements on"))
        else:
            rows.append(("share turned on", f"{options.get('turn_on_percentile')}"))
    return _table(("", ""), rows)


def _allocation(result: CardContents) -> list[str]:
    """Returns a table of blocks × places with the ranks (`·`: off, empty: no such place), and the pictures."""
    ranks: dict[tuple[int, str], int | str] = {(place.layer, place.name): "·" for place in result.space.places()}
    ranks |= {(each.element.layer, each.element.name): each.element.rank for each in result.space.on()}
    names = sorted({name for _, name in ranks}, key=order_of)
    if not names:
        return []
    rows = [(layer, *(ranks.get((layer, name), "") for name in names)) for layer in range(len(result.space.blocks))]
    return [
        "## Allocation",
        "The rank of each element. `·`: the element is off.",
        _table(("block", *names), rows),
        *(f"![{name}]({name})" for name in result.pictures),
    ]


def _metrics(result: CardContents) -> list[str]:
    rows = [
        (split, name, "–" if value is None else f"{value:.4f}")
        for split, values in (result.metrics or {}).items()
        for name, value in values.items()
    ]
    return ["## Metrics", _table(("split", "metric", "value"), rows)] if result.metrics else []


def _in_vllm(result: CardContents, base: str) -> list[str]:
    if result.max_lora_rank is None:
        return []
    serve = f"vllm serve {shlex.quote(base)} --enable-lora --max-lora-rank {result.max_lora_rank}"
    text = "The scaling of each element is folded into its B, and lower ranks are padded with zeros."
    return [f"### In vLLM\n\n{text}", f"```bash\n{serve} --lora-modules NAME=path/to/this/folder\n```"]


def _in_peft(result: CardContents, base: str) -> list[str]:
    if not result.space.on("lora"):
        return []
    spec, auto = result.spec, auto_class(result.spec.task).__name__
    dtype = str(base_dtype(str(result.record.options.get("precision", "32")))).removeprefix(f"{torch.__name__}.")
    arguments = f"{base!r}, dtype={dtype!r}"
    if spec.task == "classification":
        labels = f"id2label={dict(enumerate(spec.labels))!r}" if spec.labels else f"num_labels={spec.num_labels}"
        arguments += f", {labels}"
    code = f"""```python
from peft import PeftModel
from transformers import {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({base!r})
base = {auto}.from_pretrained({arguments})
base.config.pad_token_id = {result.network.config.pad_token_id}
model = PeftModel.from_pretrained(base, ".").eval()  # this folder
```"""
    return ["### In PEFT" + (", without the shortcuts" if result.beyond_peft else ""), code]


def _table(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
