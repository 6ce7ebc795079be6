"""SmolLM3 (Bakouch et al. 2025). It has the same modules as Llama. Some blocks have no rotary positions."""

from dataclasses import replace

from model.family import llama

FAMILY = replace(llama.FAMILY, name="smollm3", model_types=("smollm3",))
