"""Qwen3 (Yang et al. 2025, arXiv:2505.09388). It has the modules of Llama, and norms of queries and keys."""

from dataclasses import replace

from model.family import llama

FAMILY = replace(llama.FAMILY, name="qwen3", model_types=("qwen3",))
