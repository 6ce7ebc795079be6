"""What a data set of multiple choice declares about its choices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
GAP = " "  # the usual text between a prompt and a choice


@dataclass(frozen=True)
class Choices:
    """The choices of each row. The label column says which one is right.

    Attributes:
        texts: function of a row that returns the choices, at least two. Rows may differ in their number.
        keys: function of a row that returns the names of the choices in the label column. `None`: the label column
            holds numbers from 0, letters from A, or the text of the right choice.
        nested: the columns that hold lists or objects. The functions get their values as in JSON.
        header: function of a row that returns the text before the examples and the prompt.
        examples: the split that the examples of `--few-shot` come from. `None`: the training split.
        group: a column. A row and its examples have the same value in it.
    """

    texts: Callable[[Mapping[str, Any]], Sequence[str]]
    keys: Callable[[Mapping[str, Any]], Sequence[str]] | None = None
    nested: tuple[str, ...] = ()
    header: Callable[[Mapping[str, Any]], str] | None = None
    examples: str | None = None
    group: str | None = None


def place_of(label: object, texts: Sequence[str], keys: Sequence[str] | None) -> int | None:
    """Return the place of the right choice in `texts`, from 0. `None` if the label is none of the choices."""
    name = label.strip() if isinstance(label, str) else label
    if keys is not None:
        names = [*map(str, keys)][: len(texts)]  # a key without a text names no choice
        return names.index(str(name)) if str(name) in names else None
    letters = LETTERS[: len(texts)]
    if is_ambiguous(name, texts):
        return None
    if isinstance(name, str) and name in texts:
        return texts.index(name)
    if isinstance(name, str) and len(name) == 1 and name in letters:
        return letters.index(name)
    if isinstance(name, bool) or not (isinstance(name, int | float) or (isinstance(name, str) and name.isdecimal())):
        return None
    return next((place for place in range(len(texts)) if place == float(name)), None)


def is_ambiguous(label: object, texts: Sequence[str]) -> bool:
    """Whether a label without keys is the text of one choice, and the number or letter of another."""
    if not isinstance(label, str) or (name := label.strip()) not in texts:
        return False
    number = int(name) if name.isdecimal() and len(name) < 10 else LETTERS.find(name) if len(name) == 1 else -1
    return 0 <= number < len(texts) and texts[number] != name


def expected_label(texts: Sequence[str], keys: Sequence[str] | None) -> str:
    """Return what `place_of` takes, in words."""
    if keys is not None:
        return f"one of {', '.join(map(str, keys))}"
    letter = LETTERS[: len(texts)][-1]
    return f"a number from 0 to {len(texts) - 1}, a letter from A to {letter}, or the text of the right choice"
