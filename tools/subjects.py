"""What benchmarks run: OPT models made from a configuration, with random weights and no download, and batches."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, OPTConfig, PreTrainedModel

from heterolora.adapt import adapt, plan
from heterolora.config import ElementConfig, parse
from heterolora.search_space import SearchSpace
from model import family
from tools.measure import Step

Batch = Mapping[str, Tensor]

#: Where LoRA sits: title -> projections.
PLACES = {
    "q, v": ("q_proj", "v_proj"),
    "all six projections": ("q_proj", "k_proj", "v_proj", "o_proj", "w1", "w2"),
}


def add_options(parser: argparse.ArgumentParser, **defaults: int) -> None:
    """The options of a model and its batch; `defaults` by attribute, where a benchmark has its own."""
    sizes = (
        ("--hidden-size", 768, "width of the model (768: OPT-125M)"),
        ("--layers", 6, "number of blocks"),
        ("--rows", 8, "rows of a batch"),
        ("--tokens", 64, "tokens of a row"),
        ("--rank", 8, "r of every element"),
    )
    for flag, usual, meaning in sizes:
        default = defaults.get(flag.strip("-").replace("-", "_"), usual)
        parser.add_argument(flag, type=int, default=default, metavar="N", help=f"{meaning} (default: {default})")


def base(args: argparse.Namespace, device: torch.device, vocabulary: int = 1000) -> PreTrainedModel:
    """A pre-norm OPT that classifies, the same for the same options; dropout is off."""
    width = args.hidden_size
    config = OPTConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        word_embed_proj_dim=width,
        ffn_dim=4 * width,
        num_hidden_layers=args.layers,
        num_attention_heads=max(1, width // 64),
        max_position_embeddings=max(64, args.tokens),
        dropout=0.0,
    )
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(config).to(device)


def batch(args: argparse.Namespace, device: torch.device) -> Batch:
    """Random tokens without padding, and labels."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 1000, (args.rows, args.tokens), generator=generator)
    labels = torch.randint(2, (args.rows,), generator=generator)
    made = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    return {name: tensor.to(device) for name, tensor in made.items()}


def lora(rank: int, names: Iterable[str]) -> ElementConfig:
    """LoRA of rank `rank` on the projections `names` of every block."""
    on = {name: {"r": rank, "lora_alpha": 2 * rank} for name in names}
    return parse({"granularity": "network", "default": {"r": 0}, "all_layers": on}, "lora")


def shortcuts(rank: int) -> ElementConfig:
    """Every shortcut in every block."""
    return parse({"granularity": "network", "default": {"r": rank, "shortcut_alpha": 2 * rank}}, "shortcut")


def adapted(
    network: PreTrainedModel, lora: ElementConfig, shortcut: ElementConfig | None = None
) -> tuple[PreTrainedModel, SearchSpace]:
    """A copy of `network` with these elements, all on, every B as if trained; the same for the same elements."""
    network = copy.deepcopy(network)
    torch.manual_seed(1)
    space = adapt(network, plan(network, family.get("opt"), lora, shortcut))
    with torch.no_grad():
        for low_rank in space:
            low_rank.B.normal_(std=0.01)
    return network, space


def training_step(network: nn.Module, *batches: Batch) -> Step:
    """Forward, backward and an AdamW step of what asks for a gradient, for each batch."""
    network.train()
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-5)

    def step() -> None:
        for batch in batches:
            network(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return step
