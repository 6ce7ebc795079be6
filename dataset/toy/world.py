"""The subjects of the toy world, the traits that each kind has, and the split that each description belongs to.

The splits are disjoint in content for every seed. A hash of the subject and of the described traits assigns a
description to a split. So no validation or test text has a training text on the same traits of the same subject.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from heterolora.common.errors import UserError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Trait:
    """A pair of opposites, such as hot and cold, with words for both."""

    name: str
    yes: tuple[str, ...]
    no: tuple[str, ...]


def traits(*rows: tuple[str, str, str]) -> tuple[Trait, ...]:
    """Return traits from rows of a name, the words for yes, and the words for no."""
    return tuple(Trait(name, tuple(yes.split()), tuple(no.split())) for name, yes, no in rows)


WOMEN = ("Anna", "Clara", "Eva", "Greta", "Ida", "Lena", "Nora", "Rosa")
MEN = ("Ben", "Carl", "David", "Erik", "Felix", "Hugo", "Max", "Paul")
THINGS = ("tea", "soup", "bread", "coat", "lamp", "boat", "drum", "stone", "bowl", "cart", "bell", "chair")
PLACES = ("garden", "kitchen", "harbour", "library", "market", "station", "tower", "village")
SUBJECTS: Mapping[str, tuple[str, ...]] = {"person": WOMEN + MEN, "thing": THINGS, "place": PLACES}
TRAITS: Mapping[str, tuple[Trait, ...]] = {
    "person": traits(
        ("mood", "happy glad", "sad upset"),
        ("energy", "awake lively", "tired sleepy"),
        ("wealth", "rich wealthy", "poor broke"),
        ("hunger", "hungry starving", "full sated"),
    ),
    "thing": traits(
        ("heat", "hot warm", "cold cool"),
        ("size", "big large", "small tiny"),
        ("price", "cheap free", "costly dear"),
        ("shine", "bright shiny", "dark dull"),
    ),
    "place": traits(
        ("noise", "loud noisy", "quiet silent"),
        ("crowd", "busy crowded", "empty deserted"),
        ("order", "clean neat", "dirty messy"),
        ("damp", "wet damp", "dry dusty"),
    ),
}


@dataclass(frozen=True)
class Fact:
    """Whether the subject has a trait."""

    trait: Trait
    holds: bool

    @property
    def opposite(self) -> Fact:
        return Fact(self.trait, not self.holds)


@dataclass(frozen=True)
class Scene:
    """A subject and two or three facts about it."""

    subject: str
    facts: tuple[Fact, ...]

    @property
    def noun(self) -> str:
        """The subject as a noun phrase."""
        return self.subject if self.subject in SUBJECTS["person"] else f"the {self.subject}"

    @property
    def pronoun(self) -> str:
        return "she" if self.subject in WOMEN else "he" if self.subject in MEN else "it"


def split_of(subject: str, *names: str) -> str:
    """Return the split that may describe these traits of `subject`: 80% train, 10% validation, 10% test."""
    bucket = zlib.crc32(" ".join((subject, *sorted(names))).encode()) % 10
    return {0: "validation", 1: "test"}.get(bucket, "train")


def draw_scene(rng: random.Random, split: str) -> Scene:
    """Draw a scene that belongs to `split`."""
    while True:
        kind = rng.choice(tuple(SUBJECTS))
        subject = rng.choice(SUBJECTS[kind])
        described = rng.sample(TRAITS[kind], rng.choice((2, 3)))
        if split_of(subject, *(trait.name for trait in described)) == split:
            return Scene(subject, tuple(Fact(trait, rng.random() < 0.5) for trait in described))


def stream(task: str, split: str, seed: int) -> random.Random:
    """Return the random numbers of a task and split. They depend on the seed and not on the machine."""
    if split not in SPLITS:
        raise UserError(f"the toy world has no split {split!r}", f"valid: {', '.join(SPLITS)}")
    return random.Random(f"{task}/{split}/{seed}")
