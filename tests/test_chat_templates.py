"""Chat templates are programs from outside: what they compute, how much they take, and what is learned."""

from __future__ import annotations

import json

import psutil
import pytest

from dataset.encoding import chat, confined
from dataset.encoding.chat import encode_chat, encode_chats
from heterolora.common.errors import UserError
from tests.tiny import word_tokenizer

PLAIN = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
TALK = [{"role": "user", "content": "a film"}, {"role": "assistant", "content": "good"}]

HOSTILE = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "power": "{{ 10 ** (10 ** 9) }}",
    "format": "{{ '%1000000000000d' % 1 }}",
    "repetition": "{{ messages[0].content * 10 ** 9 }}",
    "doubling": "{% set n = namespace(s='x') %}{% for a in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "filter": "{{ 'x' | center(10 ** 11) }}",
}


def tokenizer_with(template: str):
    tokenizer = word_tokenizer(["user assistant system a film good bad <|im_start|> <|im_end|>"])
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_that_takes_too_much(monkeypatch: pytest.MonkeyPatch, capfd, name: str) -> None:
    monkeypatch.setattr(confined, "SECONDS", 1)
    monkeypatch.setattr(confined, "MEMORY", 2**28)
    before = _children()
    with pytest.raises(UserError, match=r"the chat template (takes more than|fails for)"):
        encode_chats(tokenizer_with(HOSTILE[name] + PLAIN), 64, [json.dumps(TALK)])
    assert capfd.readouterr().err == ""
    assert _children() <= before


def _children() -> set[int]:
    """The child processes of this one. Other tests of the session may have left some."""
    return {child.pid for child in psutil.Process().children()}


def test_the_conversation_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is one of each conversation."""
    monkeypatch.setattr(confined, "SECONDS", 1)
    template = "{% if messages[0].content == 'bad' %}" + HOSTILE["loops"] + "{% endif %}" + PLAIN
    talks = [json.dumps([{**TALK[0], "content": text}, TALK[1]]) for text in ("a", "bad", "film")]
    with pytest.raises(UserError, match=r"more than 1 s of computing for .*bad"):
        encode_chats(tokenizer_with(template), 64, talks)


def test_what_the_child_says_is_what_the_parent_would() -> None:
    tokenizer = tokenizer_with(PLAIN)
    talks = [json.dumps(TALK * count) for count in (1, 2, 5)]
    assert encode_chats(tokenizer, 8, talks) == [encode_chat(tokenizer, 8, talk) for talk in talks]
    with pytest.raises(UserError, match="Conversation roles must alternate") as mistake:
        encode_chats(tokenizer_with("{{ raise_exception('Conversation roles must alternate') }}"), 8, talks)
    assert mistake.value.expected == "correct it or leave it out"


def test_a_conversation_of_a_thousand_turns_costs_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    rendered, text_of = [], chat._text_of
    monkeypatch.setattr(chat, "_text_of", lambda *args, **more: (rendered.append(args), text_of(*args, **more))[1])
    tokenizer = tokenizer_with(PLAIN)
    ids, spans = encode_chat(tokenizer, 20, json.dumps(TALK * 500))
    assert len(rendered) < 20
    assert (ids, spans) == encode_chat(tokenizer, 20, json.dumps(TALK * 6))


CHATML = (
    "{% for m in messages %}{{ '<|im_start|> ' + m.role + ' ' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + ' <|im_end|>' }}{% endgeneration %}{{ ' bad ' }}"
    "{% else %}{{ m.content + ' <|im_end|> ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|> assistant ' }}{% endif %}"
)


def test_a_turn_of_weight_0_under_marks_changes_no_other_turn() -> None:
    """What the template writes after its marks is not learned, here the word `bad`."""
    tokenizer = tokenizer_with(CHATML)

    def learned(*turns: dict[str, object]) -> list[str]:
        ids, spans = encode_chat(tokenizer, 64, json.dumps([*turns]))
        return [tokenizer.decode(ids[a:b]) for a, b in zip(spans[::2], spans[1::2], strict=True)]

    read = {"role": "assistant", "content": "film", "weight": 0}
    assert learned(*TALK, *TALK) == ["good <|im_end|>"] * 2
    assert learned(TALK[0], read, *TALK) == ["good <|im_end|>"]
    assert learned(*TALK, TALK[0], read) == ["good <|im_end|>"]
