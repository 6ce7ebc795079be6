"""Encodes multiple choice: a prompt, and the tokens that each choice adds to it.

As in EleutherAI's lm-evaluation-harness (lm_eval/api/model.py), prompt and choice are tokenised together, and the
tokens after those of the prompt alone are those of the choice. Spaces at the end of the prompt belong to the choice.

The prompt is header + examples + question. If it is too long beside the longest choice, whole examples are left out,
the last one first, as MMLU's authors do (github.com/hendrycks/test, evaluate.py). If the question alone is too long, it
loses its beginning.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from dataset.encoding.few_shot import BETWEEN
from dataset.encoding.render import render
from dataset.encoding.tokens import end_of, ids_of, start_of
from dataset.spec import DatasetSpec
from heterolora.common.errors import UserError

Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class _Question:
    header: str
    examples: list[str]
    prompt: str
    choices: list[str]
    right: int
    shots: int  # examples that are kept

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> _Question:
        examples = json.loads(row["examples"])
        return cls(row["header"], examples, row["prompt"], json.loads(row["choices"]), row["label"], len(examples))

    def texts(self, cue: str) -> list[str]:
        """Return the prompt without spaces at its end, and the prompt with each choice."""
        shown = "".join(example + BETWEEN for example in self.examples[: self.shots])
        prompt = self.header + shown + self.prompt
        return [prompt.rstrip(), *(prompt + cue + choice for choice in self.choices)]


def encode_questions(spec: DatasetSpec, tokenizer: PreTrainedTokenizerBase, limit: int, rows: pa.Table) -> Columns:
    """Encode a batch of rows. `input_ids` are prompt + right choice, of which `context` tokens are the prompt.

    The other columns are `choices`, the tokens of each choice; `answer`, the place of the right one; `characters` of
    each choice; `shots`, the number of examples in the prompt; and `cut`, whether the question lost tokens.
    """
    questions = [_Question.of(row) for row in render(spec, rows).to_pylist()]
    start, prefix = start_of(tokenizer), end_of(tokenizer)
    encoded: dict[int, dict[str, Any]] = {}  # by the place in `questions`
    waiting = list(range(len(questions)))
    while waiting:
        tokens = iter(ids_of(tokenizer, [text for each in waiting for text in questions[each].texts(spec.cue)]))
        for each in waiting:
            question = questions[each]
            prompt, *wholes = islice(tokens, 1 + len(question.choices))
            choices = [whole[len(prompt) :] for whole in wholes]
            if not all(choices):
                found = f"choice {choices.index([]) + 1} of the question '{question.prompt[-60:]}' adds no token to it"
                raise UserError(found, "correct the text of the choice")
            longest = max(map(len, choices))
            if len(start) + len(prompt) + longest <= limit or question.shots == 0:
                encoded[each] = _row(question, start, prompt, choices, limit, prefix)
            else:
                questions[each] = replace(question, shots=question.shots - 1)
        waiting = [each for each in waiting if each not in encoded]
    return {name: [encoded[each][name] for each in range(len(questions))] for name in encoded[0]}


def _row(
    question: _Question, start: list[int], prompt: list[int], choices: list[list[int]], limit: int, prefix: list[int]
) -> dict[str, Any]:
    """Return the encoded row. `prefix` replaces an empty prompt: the first token of a choice follows a token."""
    longest = min(max(map(len, choices)), limit - len(start) - 1)
    kept = prompt[max(0, len(prompt) - (limit - len(start) - longest)) :]
    context = start + kept or prefix
    ids = context + choices[question.right][:longest]
    return {
        "input_ids": ids,
        "context": len(context),
        "length": len(ids),
        "choices": [choice[:longest] for choice in choices],
        "answer": question.right,
        "characters": [len(choice) for choice in question.choices],
        "shots": question.shots,
        "cut": len(kept) < len(prompt) or any(len(choice) > longest for choice in choices),
    }
