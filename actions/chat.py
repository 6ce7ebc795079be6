"""`chat`: talk to a language model in the terminal, token by token. Ctrl-C ends an answer, Ctrl-D or /exit the chat."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from lightning_fabric import Fabric
from transformers import TextStreamer

from actions.command.request import Request
from actions.prediction.predictor import Base
from actions.run.console import say
from actions.training.trainer import check_devices
from dataset.encoding.prompts import conversation_ids
from dataset.reading.conversations import ASSISTANT
from dataset.reading.new_rows import rows_of_texts
from model.task.generation import Writer

EXIT, NEW = "/exit", "/new"


def run(request: Request) -> None:
    check_devices(request.options)
    base = Base.of(request)
    fabric = Fabric(**request.options.devices.for_lightning("auto"))
    task: Any = base.load()
    if request.options.quantize is None:  # a quantised base is on its device
        task.network.to(fabric.device)
    task.eval()
    chat = Chat(base, task.writer, fabric)
    say(f"{EXIT} or Ctrl-D ends the chat, Ctrl-C ends an answer{f', {NEW} forgets' if base.request.spec.chat else ''}")
    for text in lines():
        if text == NEW:
            chat.turns.clear()
        elif text:
            chat.answer(text)


def lines() -> Iterator[str]:
    """What the user writes, until the end of the input or `/exit`. Ctrl-C leaves a line out."""
    prompt = "> " if sys.stdin.isatty() else ""
    with suppress(EOFError):
        while True:
            try:
                text = input(prompt).strip()
            except KeyboardInterrupt:
                print()
                continue
            if text == EXIT:
                return
            yield text


class Chat:
    """A conversation. Without a chat template, each line is a prompt of its own."""

    def __init__(self, base: Base, writer: Writer, fabric: Fabric) -> None:
        self.base, self.writer, self.fabric = base, writer, fabric
        self.turns: list[dict[str, str]] = []

    def answer(self, text: str) -> None:
        """Print the answer while it is written. What is there of one that Ctrl-C ends stays in the conversation."""
        self.turns.append({"role": "user", "content": text})
        streamer = _Streamer(self.base.tokenizer, skip_prompt=True, skip_special_tokens=True)
        prompt = torch.tensor([self.prompt(text)], device=self.fabric.device)
        try:
            with self.fabric.autocast():
                self.writer.write(prompt, torch.ones_like(prompt), streamer)
        except KeyboardInterrupt:
            streamer.end()
        self.turns.append({"role": ASSISTANT, "content": streamer.text.strip()})

    def prompt(self, text: str) -> list[int]:
        """The tokens of the conversation, without its oldest turns if it is too long, or of the text alone."""
        base, spec = self.base, self.base.request.spec
        if not spec.chat:
            return base.encode(rows_of_texts(spec, [text])).rows[0]["input_ids"]
        room = base.limits.max_token_len - base.limits.max_target_len
        while len(ids := conversation_ids(base.tokenizer, self.turns)) > room and len(self.turns) > 1:
            del self.turns[:2]
        return ids[-room:]


class _Streamer(TextStreamer):
    """Prints text as it comes, and keeps it."""

    text = ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.text += text
        super().on_finalized_text(text, stream_end)
