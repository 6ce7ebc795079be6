"""Llama 4 for text (Meta 2025). Blocks with experts have the layers of Llama for all tokens beside them."""

from dataclasses import replace

from model.family import llama

_LAYERS = {"w1": "up_proj", "w2": "down_proj", "gate": "gate_proj"}
_HALF = "feed_forward"

FAMILY = replace(
    llama.FAMILY,
    name="llama4_text",
    model_types=("llama4_text",),
    linears={
        **llama.FAMILY.linears,
        **{name: f"{_HALF}.shared_expert.{layer}" for name, layer in _LAYERS.items()},
        **{f"{_HALF}.{layer}": f"{_HALF}.{layer}" for layer in _LAYERS.values()},  # of a block without experts
    },
    feed_forward=_HALF,
    experts={f"experts.{name}": f"{_HALF}.experts.{name}" for name in ("gate_up_proj", "down_proj")},
)
