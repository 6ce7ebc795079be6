"""Tiny models, made from a configuration: two blocks, 32 wide, random weights, no download. Tiny tokenizers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from model.skeleton import auto_class

VOCABULARY = 64
PAD = 1

_SHAPES = {
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0},
    "roberta": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "intermediate_size": 64},
    "xlm-roberta": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "intermediate_size": 64},
    "camembert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "intermediate_size": 64},
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "intermediate_size": 64},
    "gemma": {"intermediate_size": 64, "num_key_value_heads": 1, "head_dim": 8},
    "llama": {"intermediate_size": 64, "num_key_value_heads": 2},
    "qwen2": {"intermediate_size": 64, "num_key_value_heads": 2},
    "mistral": {"intermediate_size": 64, "num_key_value_heads": 2},
}


def tiny_network(family: str, task: str = "classification", seed: int = 0, **overrides) -> PreTrainedModel:
    """A network of that family with the head of that task, in evaluation mode.

    No weight is at its usual start (biases at 0, norms at 1), so that a forgotten bias shows.

    Args:
        family: a `model_type`.
        task: `classification` (3 labels) or another one of the program.
        seed: of the weights.
        overrides: keys of the Hugging Face configuration.
    """
    config = AutoConfig.for_model(
        family,
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "pad_token_id": PAD,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "num_labels": 3,
            **_SHAPES[family],
            **overrides,
        },
    )
    return unusual_network(config, task, seed)


def unusual_network(config: PreTrainedConfig, task: str, seed: int) -> PreTrainedModel:
    """In evaluation mode. No weight is at its usual start, so that a forgotten bias shows."""
    auto = auto_class(task, config)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = auto.from_config(config)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def tiny_batch(rows: int = 3, length: int = 7, padding: str | None = "right", seed: int = 0) -> dict[str, torch.Tensor]:
    """Random `input_ids` and `attention_mask` (rows, length); row i is padded by i tokens on the side asked for."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(1, rows if padding else 1):
        where = slice(length - row, None) if padding == "right" else slice(None, row)
        ids[row, where], mask[row, where] = PAD, 0
    return {"input_ids": ids, "attention_mask": mask}


_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<cls>", "<sep>")  # ids 0 to 5, as in `tiny_network`


def word_tokenizer(
    texts: Iterable[str], style: Literal["decoder", "encoder", "plain"] = "decoder", **options: object
) -> PreTrainedTokenizerFast:
    """One id a word, from 6 on in the order of first appearance; words that `texts` lack are `<unk>`.

    `decoder` begins every text with `<s>`, as OPT and Gemma do; `encoder` makes `<s> a </s> </s> b </s>`, as RoBERTa
    does; `plain` adds nothing. `options` go to `PreTrainedTokenizerFast`.
    """
    words = dict.fromkeys(word for text in texts for word in text.split())
    vocabulary = {word: index for index, word in enumerate([*_SPECIAL, *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    specials = [("<s>", 0), ("</s>", 2)]
    if style == "decoder":
        backend.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", specials)
    elif style == "encoder":
        backend.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> </s> $B </s>", specials)
    defaults = {
        "pad_token": "<pad>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "cls_token": "<cls>",
        "sep_token": "<sep>",
        "model_input_names": ["input_ids", "attention_mask"],
    }
    return PreTrainedTokenizerFast(tokenizer_object=backend, **(defaults | options))
