"""The models and batches that benchmarks run: OPT made from a configuration, with random weights and no download."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterable, Mapping

import torch
from rich.table import Table
from torch import nn
from transformers import AutoModelForSequenceClassification, OPTConfig, PreTrainedModel

from actions.run.console import say
from benchmarks import measure
from heterolora.common.errors import UserError
from heterolora.elements.adapt import adapt, placement_of
from heterolora.elements.config import ElementConfig, parse_config
from heterolora.elements.family import Family
from heterolora.elements.search_space import SearchSpace
from heterolora.saliency.problem import Batch
from model import family

QV = ("q_proj", "v_proj")
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "w1", "w2")
PLACES = {"q, v": QV, "all six projections": ALL}  # title → projections that have LoRA


def base(args: argparse.Namespace, vocabulary: int = 1000) -> PreTrainedModel:
    """A pre-norm OPT classifier without dropout. The same options give the same weights."""
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
    return AutoModelForSequenceClassification.from_config(config, trust_remote_code=False).to(args.device)


def table(network: PreTrainedModel) -> Family:
    """Return the family table of a model. Raises UserError if there is none."""
    found = family.for_model_type(network.config.model_type)
    if found is None:
        raise UserError(f"{network.config.model_type} has no family table", f"give a {' or '.join(family.names())}")
    return found


def batch(args: argparse.Namespace, vocabulary: int = 1000) -> Batch:
    """Random tokens without padding, and labels."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, vocabulary, (args.rows, args.tokens), generator=generator)
    labels = torch.randint(2, (args.rows,), generator=generator)
    made = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    return {name: tensor.to(args.device) for name, tensor in made.items()}


def lora(rank: int, names: Iterable[str]) -> ElementConfig:
    """LoRA of rank `rank` on the projections `names` of every block."""
    on = {name: {"r": rank, "lora_alpha": 2 * rank} for name in names}
    return parse_config({"granularity": "network", "default": {"r": 0}, "all_layers": on}, "lora")


def shortcuts(rank: int) -> ElementConfig:
    """Every shortcut in every block."""
    return parse_config({"granularity": "network", "default": {"r": rank, "shortcut_alpha": 2 * rank}}, "shortcut")


def adapted(network: PreTrainedModel, *configs: ElementConfig) -> tuple[PreTrainedModel, SearchSpace]:
    """A copy of `network` with the elements of a LoRA and perhaps a shortcut configuration, all on, B as if trained."""
    network = copy.deepcopy(network)
    torch.manual_seed(1)
    space = adapt(network, placement_of(network, table(network), *configs))
    with torch.no_grad():
        for low_rank in space:
            low_rank.B.normal_(std=0.01)
    return network, space


def training_step(network: nn.Module, *batches: Batch) -> measure.Step:
    """Forward, backward and AdamW on the trainable parameters, for each batch."""
    network.train()
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained or [nn.Parameter(torch.zeros(1))], lr=1e-5)  # it refuses an empty list

    def step() -> None:
        for batch in batches:
            network(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return step


def compare_steps(networks: Mapping[str, nn.Module], batch: Batch, title: str, args: argparse.Namespace) -> None:
    """Print the time and peak memory of a training step of each network; the first is the reference."""
    steps = {name: training_step(network, batch) for name, network in networks.items()}
    say(measure.by_turns(steps, args.rounds, args.device).table(next(iter(steps)), f"LoRA on {title}"))
    table = Table("variant", "peak memory of a step, MiB")
    for name, step in steps.items():
        table.add_row(name, f"{measure.peak_memory(step, args.device) / 2**20:.1f}")
    say(table)
