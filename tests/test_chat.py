"""`chat`: answers in the terminal, token by token."""

from __future__ import annotations

import io
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, TextStreamer

from tests.mistakes import complains
from tests.world import World, model_folder, run, write_jsonl

TEMPLATE = (
    "{% for m in messages %}{{ '<s> ' + m['content'] + ' <sep> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s> ' }}{% endif %}"
)
SHORT = ("--max-new-tokens", 5)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model with a chat template."""
    folder = model_folder(tmp_path_factory.mktemp("chat") / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Write lines to the program, and return the lines that it answers."""

    def talk(lines: list[str], *arguments: object) -> list[str]:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        capsys.readouterr()
        assert run("chat", *arguments) == 0
        said = capsys.readouterr().out.splitlines()
        start = next(place for place, line in enumerate(said) if line.startswith("/exit or Ctrl-D"))
        return [line.strip() for line in said[start + 1 :]]

    return talk


def predicted(folder: Path, base: Path, *conversations: list[str]) -> list[str]:
    """What `predict` answers to conversations, whose first turn is the user's."""
    rows = [
        {"messages": [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]}
        for texts in conversations
    ]
    write_jsonl(folder / "new.jsonl", rows)
    given = ("--model", base, "--dataset", folder / "new.jsonl", "--output", folder / "out.jsonl", "--overwrite")
    assert run("predict", *given, *SHORT) == 0
    return [json.loads(line)["text"] for line in (folder / "out.jsonl").read_text().splitlines()]


def test_a_conversation(base: Path, talk: Any, tmp_path: Path) -> None:
    first, second = "a good film", "a bad song"
    answer = predicted(tmp_path, base, [first])[0]
    again, alone = predicted(tmp_path, base, [first, answer, second], [second])
    assert len({answer, again, alone}) == 3
    lines = [first, "", second, "/new", second, "/exit", first]
    assert talk(lines, "--model", base, *SHORT) == [answer, again, alone]


def test_a_long_conversation_loses_its_oldest_turns(base: Path, talk: Any) -> None:
    assert len(talk(["a good film"] * 12, "--model", base, *SHORT)) == 12  # the model has 64 positions


def test_without_a_template_each_line_is_a_prompt(world: World, talk: Any, capsys) -> None:
    texts = ["a good film", "a bad song"]
    model = ("--model", "opt_lora", "--load", world.opt)
    found = talk(texts, *model, *SHORT)
    assert run("predict", *model, *SHORT, *(part for text in texts for part in ("--text", text))) == 0
    assert found == [json.loads(line)["text"].strip() for line in capsys.readouterr().out.splitlines()]


def test_ctrl_c_ends_an_answer_and_not_the_program(
    base: Path, talk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, seen = TextStreamer.put, []

    def interrupted(streamer: TextStreamer, value: Any) -> None:
        seen.append(value)
        if len(seen) == 3:  # after the prompt and a token
            signal.raise_signal(signal.SIGINT)
        put(streamer, value)

    whole = talk(["a good film"], "--model", base, *SHORT)[0]
    monkeypatch.setattr(TextStreamer, "put", interrupted)
    cut, after = talk(["a good film", "a bad song"], "--model", base, *SHORT)
    assert cut != whole
    assert whole.startswith(cut)
    assert after == predicted(tmp_path, base, ["a good film", cut, "a bad song"])[0]


def test_ctrl_c_at_the_prompt(base: Path, talk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    readline, calls = io.StringIO.readline, []

    class Stdin(io.StringIO):
        def readline(self, *arguments: Any) -> str:
            calls.append(1)
            if len(calls) == 1:
                raise KeyboardInterrupt
            return readline(self, *arguments)

    monkeypatch.setattr(io, "StringIO", Stdin)
    assert talk(["a good film"], "--model", base, *SHORT)[0] == ""
    assert len(calls) == 3


@pytest.mark.parametrize("choices", [False, True])
def test_a_model_that_writes_no_text(world: World, tmp_path: Path, capfd, choices: bool) -> None:
    rows = [{"prompt": "a film", "choices": ["good", "bad"], "label": 0}] * 20
    write_jsonl(tmp_path / "train.jsonl", rows)
    data = (tmp_path / "train.jsonl",) if choices else ("sst2", "--dataset-saved-path", world.sst2)
    more = ("--choices-column", "choices") if choices else ()
    given = ("--load", world.opt, *more, "--max-steps", 1, "--project-dir", tmp_path, "--project", "run")
    assert run("train", "opt_lora", *data, *given) == 0
    kind = "trained to choose" if choices else "a classifier"
    complains(capfd, f"this one is {kind}", "use python -m main predict", "chat", "--load", tmp_path / "run")


def test_one_process(base: Path, capfd) -> None:
    complains(capfd, "chat runs in one process", "--num-devices 1", "chat", "--model", base, "--num-devices", 2)
