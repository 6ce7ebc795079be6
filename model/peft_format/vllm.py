"""LoRA as vLLM reads it: one rank and one scaling for all modules, and no other trained weight.

vLLM takes `r` and `lora_alpha` from the configuration and ignores `rank_pattern` and `alpha_pattern`. It refuses
`modules_to_save`. A rank must not be above its option `--max-lora-rank`, which has only a few valid values.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn import functional as F

from heterolora.common.errors import UserError
from heterolora.elements.element import Element, Settings
from heterolora.elements.low_rank import LowRank
from model.checkpoint import base_location

MAX_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # valid values of --max-lora-rank


@dataclass(frozen=True)
class Pair:
    """A (r, in) and B (out, r) of an element, whose settings are those of the pair."""

    element: Element
    A: Tensor
    B: Tensor


def uniform(lora: Sequence[LowRank]) -> list[Pair]:
    """Return pairs of one rank and with scaling 1 that compute the same.

    The scaling of each element is folded into B. Lower ranks are padded with zeros to the highest one.
    """
    rank = max(low_rank.element.rank for low_rank in lora)
    settings = Settings(rank=rank, alpha=float(rank))
    pairs = []
    for low_rank in lora:
        missing = rank - low_rank.element.rank
        A = F.pad(low_rank.A.detach(), (0, 0, 0, missing))
        B = F.pad(low_rank.scaling * low_rank.B.detach(), (0, missing))
        pairs.append(Pair(replace(low_rank.element, settings=settings), A, B))
    return pairs


def how_to_load(lora: Sequence[LowRank], base: str) -> str:
    """Return a section of the model card."""
    served = f"vllm serve {shlex.quote(base_location(base))} --enable-lora --max-lora-rank {max_lora_rank(lora)}"
    return f"""### In vLLM

The scaling of each element is folded into its B, and lower ranks are padded with zeros.

```bash
{served} --lora-modules NAME=path/to/this/folder
```"""


def max_lora_rank(lora: Sequence[LowRank]) -> int:
    """Return the least `--max-lora-rank` of vLLM that admits these elements. Raises UserError if none does."""
    highest = max((low_rank.element for low_rank in lora), key=lambda element: element.rank)
    for limit in MAX_LORA_RANKS:
        if highest.rank <= limit:
            return limit
    raise UserError(
        f"the rank of {highest.key} is {highest.rank}, and vLLM's highest --max-lora-rank is {MAX_LORA_RANKS[-1]}",
        "use --format merged",
    )
