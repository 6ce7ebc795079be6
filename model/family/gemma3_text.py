"""Gemma 3 for text (Gemma Team 2025, arXiv:2503.19786). It has the modules of Gemma 2 and more norms."""

from dataclasses import replace

from model.family import gemma2

FAMILY = replace(gemma2.FAMILY, name="gemma3_text", model_types=("gemma3_text",))
