"""Generates text with transformers' `generate`, by the settings of the program alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from model.sharding import is_sharded
from model.task.encoder_decoder import encoder_inputs


@dataclass(frozen=True)
class Generation:
    """How text is generated: the most likely tokens, a beam search, or tokens drawn at a temperature.

    Attributes:
        ends: the tokens that end a text. None: the end-of-sequence token.
        temperature: 0 takes the most likely token.
        top_p: probability, together, of the tokens that are drawn from.
        strips: whether a text loses the spaces and line breaks around it.
    """

    tokenizer: PreTrainedTokenizerBase
    max_new_tokens: int
    num_beams: int = 1
    ends: Sequence[int] | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    strips: bool = True

    def config(self) -> GenerationConfig:
        """The settings in transformers' names. What a base recommends, such as penalties, has no effect."""
        tokenizer, draws = self.tokenizer, self.temperature > 0
        ends = tokenizer.eos_token_id if self.ends is None else list(self.ends) or None
        drawing = {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0} if draws else {}
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            num_beams=self.num_beams,
            do_sample=draws,
            use_cache=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=ends,
            pad_token_id=tokenizer.pad_token_id,
            **drawing,
        )


class Writer:
    """Continues prompts with a network."""

    def __init__(self, network: PreTrainedModel, generation: Generation) -> None:
        self.network: Any = network
        self.tokenizer, self.config = generation.tokenizer, generation.config()
        self._strips = generation.strips
        if network.config.is_encoder_decoder:
            self.config.decoder_start_token_id = network.config.decoder_start_token_id
        # `generate` takes every value that its argument leaves open from here: penalties, forced tokens and others.
        network.generation_config = self.config

    @torch.no_grad()
    def write(self, prompts: Tensor, mask: Tensor, streamer: BaseStreamer | None = None) -> list[str]:
        """Return continuations of the left-padded prompts, or what the decoder writes about them. `streamer` gets the
        tokens of a single one as they come.
        """
        two_parts = self.network.config.is_encoder_decoder
        if two_parts:
            prompts, mask = encoder_inputs(prompts, mask, self.network.config)
        generated = self.network.generate(
            input_ids=prompts,
            attention_mask=mask,
            generation_config=self.config,
            streamer=streamer,
            synced_gpus=is_sharded(self.network),  # every token needs a pass of every process
        )
        written = generated if two_parts else generated[:, prompts.shape[1] :]
        texts = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        return [text.strip() for text in texts] if self._strips else texts
