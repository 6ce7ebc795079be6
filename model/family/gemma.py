"""Gemma, the first (Gemma Team 2024, arXiv:2403.08295). Blocks laid out as Llama's."""

from dataclasses import replace

from model.family import llama

FAMILY = replace(
    llama.FAMILY,
    name="gemma",
    model_types=("gemma",),
    norm_offset=1.0,
    misfits=dict.fromkeys(
        ("gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text", "gemma4", "gemma4_text"),
        "later Gemmas have norms after the halves too",
    ),
)
