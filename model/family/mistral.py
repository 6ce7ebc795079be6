"""Mistral (Jiang et al. 2023, arXiv:2310.06825). It has the same modules as Llama."""

from dataclasses import replace

from model.family import llama

FAMILY = replace(llama.FAMILY, name="mistral", model_types=("mistral",))
