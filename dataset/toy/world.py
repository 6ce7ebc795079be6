"""Who and what there is in the toy world, what each can be like, and which of it each split may tell of.

Splits are disjoint in content, whatever the seed: a hash of a subject and of the respects in which it is described says
which split may describe it so. No validation or test text therefore has a training text that tells the same things of
the same subject.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from heterolora.errors import UserError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Respect:
    """Something that a subject is or is not, with words for either."""

    name: str
    yes: tuple[str, ...]
    no: tuple[str, ...]


def _respects(table: Mapping[str, tuple[str, str]]) -> tuple[Respect, ...]:
    return tuple(Respect(name, tuple(yes.split()), tuple(no.split())) for name, (yes, no) in table.items())


WOMEN = ("Anna", "Clara", "Eva", "Greta", "Ida", "Lena", "Nora", "Rosa")
MEN = ("Ben", "Carl", "David", "Erik", "Felix", "Hugo", "Max", "Paul")
THINGS = ("tea", "soup", "bread", "coat", "lamp", "boat", "drum", "stone", "bowl", "cart", "bell", "chair")
PLACES = ("garden", "kitchen", "harbour", "library", "market", "station", "tower", "village")

RESPECTS: Mapping[str, tuple[Respect, ...]] = {
    "person": _respects(
        {
            "mood": ("happy glad", "sad upset"),
            "energy": ("awake lively", "tired sleepy"),
            "wealth": ("rich wealthy", "poor broke"),
            "hunger": ("hungry starving", "full sated"),
        }
    ),
    "thing": _respects(
        {
            "heat": ("hot warm", "cold cool"),
            "size": ("big large", "small tiny"),
            "price": ("cheap free", "costly dear"),
            "shine": ("bright shiny", "dark dull"),
        }
    ),
    "place": _respects(
        {
            "noise": ("loud noisy", "quiet silent"),
            "crowd": ("busy crowded", "empty deserted"),
            "order": ("clean neat", "dirty messy"),
            "damp": ("wet damp", "dry dusty"),
        }
    ),
}
SUBJECTS: Mapping[str, tuple[str, ...]] = {"person": WOMEN + MEN, "thing": THINGS, "place": PLACES}


@dataclass(frozen=True)
class Fact:
    """In one respect the subject is so, or is not."""

    respect: Respect
    holds: bool


@dataclass(frozen=True)
class Scene:
    """A subject and what holds of it, in two or three respects."""

    subject: str
    facts: tuple[Fact, ...]

    @property
    def noun(self) -> str:
        """The subject as a noun phrase."""
        return self.subject if self.subject in SUBJECTS["person"] else f"the {self.subject}"

    @property
    def pronoun(self) -> str:
        return "she" if self.subject in WOMEN else "he" if self.subject in MEN else "it"


def split_of(subject: str, *respects: str) -> str:
    """The split that may describe `subject` in these respects: about 80% train, 10% validation, 10% test."""
    bucket = zlib.crc32(" ".join((subject, *sorted(respects))).encode()) % 10
    return {0: "validation", 1: "test"}.get(bucket, "train")


def draw_scene(rng: random.Random, split: str) -> Scene:
    """A scene that `split` may tell of."""
    while True:
        kind = rng.choice(tuple(SUBJECTS))
        subject = rng.choice(SUBJECTS[kind])
        respects = rng.sample(RESPECTS[kind], rng.choice((2, 3)))
        if split_of(subject, *(respect.name for respect in respects)) == split:
            return Scene(subject, tuple(Fact(respect, rng.random() < 0.5) for respect in respects))


def stream(task: str, split: str, seed: int) -> random.Random:
    """The random numbers of one task and split: the same for the same seed on every machine."""
    if split not in SPLITS:
        raise UserError(f"the toy world has no split {split!r}", f"valid: {', '.join(SPLITS)}")
    return random.Random(f"{task}/{split}/{seed}")
