"""Qwen2 and Qwen2.5 (Yang et al. 2024, arXiv:2407.10671). They have the same modules as Llama."""

from dataclasses import replace

from model.family import llama

FAMILY = replace(llama.FAMILY, name="qwen2", model_types=("qwen2",))
