"""Gemma 1 (Gemma Team 2024, arXiv:2403.08295). It has the same modules as Llama."""

from dataclasses import replace

from model.family import llama

FAMILY = replace(
    llama.FAMILY,
    name="gemma",
    model_types=("gemma",),
    norm_offset=1.0,
    misfits=dict.fromkeys(
        ("gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text", "gemma4", "gemma4_text"),
        "later Gemma models also have norms after the halves",
    ),
)
