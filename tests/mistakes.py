"""How a user's mistake must end: one line that says what was found and what would be right, and exit code 2."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from heterolora.common.errors import UserError
from main import main


def complaint(capfd: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must fail as a user's mistake does; returns its line."""
    capfd.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert ";" in lines[0]
    return lines[0]


def refusal(call: Callable[..., object], *arguments: object, **named: object) -> str:
    """The line of the UserError that a call must raise: short, and without control characters."""
    with pytest.raises(UserError) as caught:
        call(*arguments, **named)
    line = str(caught.value)
    assert line.isprintable()
    assert len(line) < 10_000
    return line


@contextmanager
def refused(found: str, expected: str = "") -> Iterator[None]:
    """What runs in it must raise a UserError that says that it found this and expects that."""
    with pytest.raises(UserError) as caught:
        yield
    assert found in caught.value.found
    assert expected in caught.value.expected


def complains(capfd: pytest.CaptureFixture[str], found: str, expected: str, *arguments: object) -> None:
    """A command that must fail says that it found this and expects that."""
    head, _, advice = complaint(capfd, *arguments).partition(";")
    assert found in head
    assert expected in advice
