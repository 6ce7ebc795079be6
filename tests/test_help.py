"""`--help` is short, `--help-all` is complete, and a shell completes the words of a command."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from actions.command.parse import parse_command
from heterolora.program import STARTED
from options.actions import ACTIONS, TOOLS, as_started
from options.declare import OptionInfo
from options.every import declared
from tests.world import ROOT

LONGEST = 40  # lines


def help_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as leaving:
        parse_command(words)
    assert not leaving.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("action", ACTIONS)
def test_help_of_an_action_is_short(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = help_of(capsys, action, "--help")
    assert len(said.splitlines()) <= LONGEST
    assert not [line for line in said.splitlines() if len(line) > 100]
    assert "usage:" not in said
    assert all(word in said for word in ("--model", "--load", "--help-all"))
    assert "--gradient-clip-val" not in said


@pytest.mark.parametrize("action", ACTIONS)
def test_help_all_shows_every_option_of_an_action(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = re.findall(r"^  (--[^ ]+(?:.*?, --[^ ]+)*)", help_of(capsys, action, "--help-all"), re.MULTILINE)
    shown = {word for name in names for word in re.findall(r"--[\w-]+", name)}
    assert {info.flag for info in declared().values() if info.used_by(action)} <= shown
    assert not {info.flag for info in declared().values() if not info.used_by(action)} & shown


def test_the_first_help_lists_actions_and_tools(capsys: pytest.CaptureFixture[str]) -> None:
    said = help_of(capsys, "--help")
    assert all(each in said for each in (*ACTIONS, *(f"python tools/{tool.file}.py" for tool in TOOLS.values())))
    assert len(said.splitlines()) <= LONGEST
    assert "usage:" not in said


@pytest.mark.parametrize("info", declared().values(), ids=lambda info: info.name)
def test_an_option_says_first_what_it_is(info: OptionInfo) -> None:
    """A name such as --dyrealloc-ags-mode explains nothing, and what one of its values does is no start."""
    assert not info.help.startswith(tuple(f"{value}: " for value in (*info.choices, *info.words, "lora", "fsdp")))
    assert not info.help.startswith(("with ", "if "))


def test_every_tool_is_listed() -> None:
    files = (ROOT / "tools").glob("*.py")
    tools = {path.stem for path in files if "run(main)" in path.read_text(encoding="utf-8")}
    assert {tool.file for tool in TOOLS.values()} == tools


def test_commands_are_named_as_the_user_starts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "see `tools/inspect_model.py --plan`, or python tools/report.py runs/a, or python -m main train"
    monkeypatch.delenv(STARTED, raising=False)
    assert as_started(text) == text
    monkeypatch.setenv(STARTED, "train")
    assert as_started(text) == "see `heterolora inspect --plan`, or heterolora report runs/a, or heterolora train"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("heterolora imp", ["imp-test "]),
        ("heterolora rep", ["report "]),
        ("heterolora train --max-ste", ["--max-steps "]),
        ("heterolora train --optimizer ad", ["adam", "adamw"]),
        ("heterolora export runs/a --form", ["--format "]),
    ],
)
def test_a_shell_completes(line: str, words: list[str], tmp_path: Path) -> None:
    """The environment variables are those of argcomplete's function for a shell."""
    answer = tmp_path / "answer"
    asked = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n"}
    environment = {**os.environ, **asked, "_ARGCOMPLETE_STDOUT_FILENAME": str(answer)}
    command = [sys.executable, "-m", "heterolora.program"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert answer.read_text().splitlines() == words


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_a_live_bash_completes(tmp_path: Path) -> None:
    """With the line of docs/options.md for `.bashrc`, on a terminal of its own."""
    (register,) = re.findall(r"`(eval .*?)`", (ROOT / "docs" / "options.md").read_text())
    command = tmp_path / "heterolora"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m heterolora.program "$@"\n')
    command.chmod(0o755)
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    terminal, inside = pty.openpty()
    bash = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"], stdin=inside, stdout=inside, stderr=inside, cwd=ROOT,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "TERM": "dumb"}, start_new_session=True,
    )  # fmt: skip
    try:
        os.write(terminal, f"{register}\n".encode() + b"heterolora expo\t")
        until(terminal, "heterolora export ")
        os.write(terminal, b"\x15heterolora train --max-ste\t")
        until(terminal, "--max-steps ")
    finally:
        bash.kill()
        bash.wait()
        os.close(terminal)
        os.close(inside)


def until(terminal: int, text: str) -> None:
    """Read what a terminal shows until the text is there."""
    shown, end = "", time.monotonic() + 120
    while text not in shown:
        ready, _, _ = select.select([terminal], [], [], end - time.monotonic())
        assert ready, f"{text!r} is not in {shown!r}"
        shown += os.read(terminal, 4096).decode(errors="replace")
