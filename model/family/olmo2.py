"""OLMo 2 (OLMo Team 2024, arXiv:2501.00656). The modules of Llama; its only norms are those of the halves' outputs."""

from dataclasses import replace

from model.family import llama

FAMILY = replace(
    llama.FAMILY,
    name="olmo2",
    model_types=("olmo2",),
    norm1="",
    norm2="",
    end_norm1="post_attention_layernorm",
    end_norm2="post_feedforward_layernorm",
)
