"""Adapted tiny models for tests: every element of a family on, with trained (random) B."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from heterolora.elements import config
from heterolora.elements.adapt import adapt, placement_of
from heterolora.elements.family import Family
from heterolora.elements.search_space import SearchSpace
from model import family
from tests.tiny import tiny_network

#: Every family and norm placement: (name, keys of the Hugging Face configuration).
VARIANTS = {
    "opt-pre": ("opt", {}),
    "opt-post": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    "roberta": ("roberta", {}),
    "bert": ("bert", {}),
    "gemma": ("gemma", {}),
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "mistral": ("mistral", {}),
}
#: Every variant with every head that it can have.
CASES = [
    (variant, task)
    for variant, (name, _) in VARIANTS.items()
    for task in ("classification", "causal_language_modeling")
    if task in family.get(name).tasks
]


@dataclass
class Adapted:
    """An adapted network, its search space and what it was before."""

    network: PreTrainedModel
    space: SearchSpace
    pretrained: dict[str, Tensor]

    def train_b(self, seed: int = 1, std: float = 0.3) -> Adapted:
        """Give every B random values, as if it had been trained."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for low_rank in self.space:
                low_rank.B.normal_(std=std, generator=generator)
        return self


def lora_config(**default: object) -> config.ElementConfig:
    """LoRA everywhere, r = 3."""
    return config.parse_config({"granularity": "network", "default": {"r": 3, "lora_alpha": 6, **default}}, "lora")


def shortcut_config(renormalize: bool = False, **default: object) -> config.ElementConfig:
    """Shortcuts everywhere, r = 2."""
    document = {"granularity": "network", "renormalize": renormalize}
    return config.parse_config({**document, "default": {"r": 2, "shortcut_alpha": 3, **default}}, "shortcut")


def put_into(
    network: PreTrainedModel,
    table: Family,
    lora: config.ElementConfig | None,
    shortcut: config.ElementConfig | None = None,
) -> SearchSpace:
    """Plan the elements of the configurations and add them."""
    return adapt(network, placement_of(network, table, lora, shortcut))


def adapted(
    variant: str,
    task: str = "classification",
    lora: config.ElementConfig | None = None,
    shortcut: config.ElementConfig | None = None,
    **overrides: object,
) -> Adapted:
    """A tiny network of the variant with the given elements, all on, B = 0."""
    name, keys = VARIANTS[variant]
    network = tiny_network(name, task, **{**keys, **overrides})
    pretrained = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        space = put_into(network, family.get(name), lora, shortcut)
    return Adapted(network, space, pretrained)


def gradients(space: SearchSpace) -> dict[str, Tensor]:
    """Gradient of every A and B that has one."""
    return {
        f"{low_rank.element.key}.{which}": parameter.grad.clone()
        for low_rank in space
        for which, parameter in (("A", low_rank.A), ("B", low_rank.B))
        if parameter.grad is not None
    }
