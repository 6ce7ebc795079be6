"""Problems for tests of scoring: tiny adapted networks with labelled batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from heterolora.choosing.allocation import Scored
from heterolora.elements.config import ElementConfig, parse_config
from heterolora.elements.element import SHORTCUTS, Element, Settings
from heterolora.saliency.problem import Batch, Loss, Metric, Problem
from tests.adapted import Adapted
from tests.tiny import tiny_batch


def scored(
    layer: int,
    name: str,
    score: float,
    rank: int = 8,
    widths: tuple[int, int] = (16, 16),
    module: str = "",
    settings: Settings | None = None,
) -> Scored:
    """An element with its score; alpha is 16 unless there are settings."""
    kind = "shortcut" if name in SHORTCUTS else "lora"
    return Scored(Element(layer, name, kind, module, *widths, settings or Settings(rank, 16.0)), score)


def q_and_v(rank: int = 2) -> ElementConfig:
    """LoRA on q and v, as small as it gets."""
    on = {name: {"r": rank, "lora_alpha": 2 * rank} for name in ("q_proj", "v_proj")}
    return parse_config({"granularity": "network", "default": {"r": 0}, "all_layers": on}, "lora")


def labelled(adapted: Adapted, count: int, rows: int = 3, length: int = 7, wrong: float = 0.3) -> list[Batch]:
    """Classification batches whose labels are what the network says, but for a share of random ones."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for seed in range(count):
        batch = tiny_batch(rows, length, seed=seed)
        with torch.no_grad():
            says = adapted.network(**batch).logits.argmax(-1)
        other = torch.randint(adapted.network.config.num_labels, (rows,), generator=generator)
        batch["labels"] = torch.where(torch.rand(rows, generator=generator) < wrong, other, says)
        made.append(batch)
    return made


def loss_and_logits(network: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of the labels, of rows or, for a causal model, of the tokens themselves."""
    logits = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    if "labels" in batch:
        return F.cross_entropy(logits, batch["labels"]), logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten()), logits


def problem(adapted: Adapted, batches: Sequence[Batch], metric: Metric | None = None) -> Problem:
    def evaluate(batch: Batch) -> Loss:
        loss, logits = loss_and_logits(adapted.network, batch)
        count = torch.tensor(float(len(batch["input_ids"])))
        return Loss(loss * count, count, logits)

    return Problem(adapted.network, adapted.space, evaluate, batches, metric or Metric())
