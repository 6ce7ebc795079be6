"""`samples.md`: what a trained language model writes for the first validation rows, beside what their data say."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from actions.run.console import is_first_process, say
from actions.run.run_folder import SAMPLES
from actions.training.experiment import Experiment
from dataset.batching.collate import Collator
from dataset.batching.loader import Rows
from dataset.encoding.encode import Lengths
from dataset.encoding.prompts import encode_new_rows, ends_of_answers
from dataset.reading.conversations import ASSISTANT
from heterolora.common.files import write_text
from model.task.generation import Generation, Writer

_ROWS, _NEW, _BEGINNING = 3, 64, 32  # rows; tokens of an answer, and of a text to continue
_SHOWN = 160  # characters of a text that is printed


@dataclass(frozen=True)
class Sample:
    prompt: str
    answer: str  # of the model
    expected: str  # in the data


def write_samples(experiment: Experiment, folder: Path) -> None:
    """Print some answers of the trained weights, and write them into the run folder. A classifier has none."""
    if not experiment.task.spec.writes_text:
        return
    samples = samples_of(experiment)
    if is_first_process():
        split = experiment.data.validation_names[0]
        write_text(folder / SAMPLES, f"# What the model writes for rows of {split}\n{''.join(map(_section, samples))}")
        for sample in samples:
            say(f"{_short(sample.prompt)}\n  the model: {_short(sample.answer)}\n  the data: {_short(sample.expected)}")
        say(f"samples: {folder / SAMPLES}")


def samples_of(experiment: Experiment) -> list[Sample]:
    """Every process must call it: a sharded model is run by all of them together."""
    data, task = experiment.data, experiment.task
    rows = next(iter(data.splits.validation.values()))
    new = data.limits.max_target_len or min(_NEW, data.limits.max_token_len // 2)
    if task.spec.packed:
        prompts, expected = _beginnings(experiment, rows, new)
    else:
        rows = rows.select(range(min(_ROWS, len(rows))))
        limits = Lengths(data.limits.max_token_len, new)
        texts = rows.select_columns([*task.spec.inputs])
        prompts = encode_new_rows(texts, task.spec, data.tokenizer, limits).rows
        expected = [_expected(experiment, row) for row in rows]
    batch = Collator(data.tokenizer, generate=True)(Rows(prompts).__getitems__(list(range(len(prompts)))))
    ends = ends_of_answers(task.spec, data.tokenizer)
    task.network.eval()
    writer = Writer(task.network, Generation(data.tokenizer, new, ends=ends))
    device = task.network.device
    with task.uncompiled():
        answers = writer.write(batch["prompt_ids"].to(device), batch["prompt_mask"].to(device))
    shown = data.tokenizer.batch_decode(prompts[:]["input_ids"], skip_special_tokens=True)
    return [Sample(*texts) for texts in zip(shown, answers, expected, strict=True)]


def _beginnings(experiment: Experiment, rows: Dataset, new: int) -> tuple[Dataset, list[str]]:
    """The first tokens of the first blocks of plain text, and the text that follows them."""
    data = experiment.data
    blocks = data.encoded(rows)[:_ROWS]["input_ids"]
    cuts = [max(1, min(_BEGINNING, len(block) // 2)) for block in blocks]
    prompts = [block[:cut] for block, cut in zip(blocks, cuts, strict=True)]
    follows = [block[cut : cut + new] for block, cut in zip(blocks, cuts, strict=True)]
    lengths = [*map(len, prompts)]
    encoded = Dataset.from_dict({"input_ids": prompts, "context": lengths, "length": lengths})
    return encoded, data.tokenizer.batch_decode(follows, skip_special_tokens=True)


def _expected(experiment: Experiment, row: dict[str, str]) -> str:
    """The response of a row, or the last answer of a conversation."""
    spec = experiment.task.spec
    last = row[spec.columns[-1]]
    if not spec.chat:
        return last
    answers = [turn["content"] for turn in json.loads(last) if turn["role"] == ASSISTANT]
    return answers[-1] if answers else ""


def _section(sample: Sample) -> str:
    parts = {"Prompt": sample.prompt, "The model": sample.answer, "The data": sample.expected}
    return "".join(f"\n**{name}**\n\n{_quoted(text)}\n" for name, text in parts.items()) + "\n---\n"


def _quoted(text: str) -> str:
    """The text as a quotation in Markdown, in which nothing of it is markup."""
    return "\n".join(f"    {line}" for line in text.splitlines()) or "    (nothing)"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"… {line[-_SHOWN:]}"
