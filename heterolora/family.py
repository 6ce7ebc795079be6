"""What a family of architectures is: a table of module paths, read without importing torch or transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from heterolora.errors import UserError, nearest

Task = Literal["classification", "causal_language_modeling", "summarization"]
TASKS: tuple[Task, ...] = ("classification", "causal_language_modeling", "summarization")

#: Canonical projection names, in the order of every table, and the other names that files may use for them.
PROJECTIONS: Mapping[str, tuple[str, ...]] = {
    "q_proj": (),
    "k_proj": (),
    "v_proj": (),
    "o_proj": ("out_proj",),
    "w1": ("fc1", "up_proj"),
    "w2": ("fc2", "down_proj"),
    "gate": ("gate_proj",),
}


def always(config: Any) -> bool:
    """`pre_norm` of an architecture that normalises before each half, whatever its configuration."""
    return True


def never(config: Any) -> bool:
    """`pre_norm` of an architecture that normalises after each half, whatever its configuration."""
    return False


@dataclass(frozen=True)
class Family:
    """One architecture, as paths into the library's own modules.

    A block is two halves, attention and feed-forward, each with a residual sum and a norm (before the half in a
    pre-norm model, after the sum in a post-norm one). The paths below are all that LoRA and the shortcuts need.

    Attributes:
        name: the `<name>` of `--model <name>_lora` and `<name>_lora_ags`.
        model_types: the `model_type`s of Hugging Face configurations that the table fits.
        blocks: path of the list of blocks inside the base model (the network without its head).
        linears: canonical projection name -> path of the linear layer inside a block. `o_proj` is the last layer of the
            attention half and `w2` of the feed-forward half, `q_proj` and `w1` are among the first of each.
        norm1: path of the attention half's norm inside a block.
        norm2: path of the feed-forward half's norm inside a block.
        pre_norm: Hugging Face configuration -> whether the norms come before the halves.
        before_blocks: paths inside the base model of the linear layers and norms that the input embeddings pass on
            their way to the first block, in order; a model need not have them.
        after_blocks: likewise, on the way from the last block to the last hidden state.
        norm_offset: what a norm adds to its weight before it multiplies by it.
        tasks: the tasks that the architecture does.
        misfits: what looks alike and is not: `model_type` -> why the table does not fit it.
    """

    name: str
    model_types: tuple[str, ...]
    blocks: str
    linears: Mapping[str, str]
    norm1: str
    norm2: str
    pre_norm: Callable[[Any], bool]
    before_blocks: tuple[str, ...] = ()
    after_blocks: tuple[str, ...] = ()
    norm_offset: float = 0.0
    tasks: tuple[Task, ...] = TASKS
    misfits: Mapping[str, str] = field(default_factory=dict)

    def check(self, config: Any) -> None:
        """Raise `UserError` unless the table fits the model that this Hugging Face configuration describes."""
        found = config.model_type
        if found in self.model_types:
            return
        why = self.misfits.get(found)
        reason = f" ({why})" if why else ""
        raise UserError(
            f"the family '{self.name}' does not fit a model of type '{found}'{reason}",
            f"expected type {' or '.join(repr(name) for name in self.model_types)}",
        )

    def check_task(self, task: Task) -> None:
        """Raise `UserError` unless models of this family do `task`."""
        if task not in self.tasks:
            raise UserError(f"--task '{task}' is not something {self.name} models do", nearest(task, self.tasks))
