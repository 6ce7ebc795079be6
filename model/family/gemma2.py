"""Gemma 2 (Gemma Team 2024, arXiv:2408.00118). The output of each half has a norm of its own."""

from dataclasses import replace

from model.family import gemma

FAMILY = replace(
    gemma.FAMILY,
    name="gemma2",
    model_types=("gemma2",),
    norm2="pre_feedforward_layernorm",
    end_norm1="post_attention_layernorm",
    end_norm2="post_feedforward_layernorm",
    misfits={},
)
