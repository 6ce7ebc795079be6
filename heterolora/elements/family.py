"""The table of a model family: module paths that LoRA and shortcuts need. Imports neither torch nor transformers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from heterolora.common.errors import UserError
from heterolora.elements.element import PROJECTIONS
from heterolora.elements.task import TASKS, Task, check_task


def always(config: Any) -> bool:
    """`pre_norm` of an architecture that always normalises before each half."""
    return True


def never(config: Any) -> bool:
    """`pre_norm` of an architecture that always normalises after each half."""
    return False


@dataclass(frozen=True)
class Family:
    """One architecture, as paths to the library's own modules.

    A block has two halves, attention and feed-forward. Each half has a residual sum and a norm: before the half in a
    pre-norm model, after the sum in a post-norm model.

    Attributes:
        name: the `<name>` of `--model <name>_lora` and `<name>_lora_ags`.
        model_types: the `model_type`s of Hugging Face configurations that the table fits.
        blocks: path of the list of blocks inside the base model (the network without its head).
        more_blocks: path of a further list, such as that of a decoder after an encoder -> number of its first block.
        linears: canonical projection name -> path of the linear layer inside a block. `o_proj` is the last layer of the
            attention half and `w2` of the feed-forward half; `q_proj` and `w1` are among the first layers of each.
        experts: name -> path inside a block of a parameter with the weights of all experts. They get LoRA only where
            they are named, because it costs as much as on so many layers.
        norm1: path of the attention half's norm inside a block; `norm2`: of the feed-forward half's norm. Both are
            empty if the only norms are those of the halves' outputs, or if they are not known.
        end_norm1, end_norm2: paths of norms of the halves' outputs, before the residual sums. Empty if there are none.
        attention, feed_forward: paths of the halves, if `o_proj` and `w2` are not the last layer of it in each block.
        pre_norm: Hugging Face configuration -> whether no norm comes after the residual sums.
        parallel: Hugging Face configuration -> whether both halves have the same input.
        returns_tuple: whether a block returns a tuple, whose first value is its output.
        found: whether it was found in a network (`heterolora.elements.found`), which tells about the blocks only.
        before_blocks: paths inside the base model of the linear layers and norms between the input embeddings and the
            first block, in order; paths that a model does not have are skipped.
        after_blocks: the same between the last block and the last hidden state.
        norm_offset: a constant that a norm adds to its weight.
        positions_after_padding: whether position ids start after the padding index, so that the model has fewer usable
            positions than rows in its position table.
        tasks: what models of the family can do.
        misfits: `model_type` of a similar architecture -> why the table does not fit it.
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
    end_norm1: str = ""
    end_norm2: str = ""
    attention: str = ""
    feed_forward: str = ""
    parallel: Callable[[Any], bool] = never
    returns_tuple: bool = False
    found: bool = False
    norm_offset: float = 0.0
    positions_after_padding: bool = False
    tasks: tuple[Task, ...] = tuple(TASKS)
    experts: Mapping[str, str] = field(default_factory=dict)
    more_blocks: Mapping[str, int] = field(default_factory=dict)
    misfits: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_norms(self) -> bool:
        """Whether it says where the norms are, which shortcuts need."""
        return bool(self.norm1 or self.end_norm1)

    @property
    def has_paths(self) -> bool:
        """Whether `synflow` finds its paths: a table, and a layer of its own for each projection."""
        return not (self.found or self.feed_forward) and {"v_proj", "o_proj", "w1", "w2"} <= self.linears.keys()

    @property
    def ends(self) -> tuple[str, str]:
        """Paths of the last layers of the halves, whose outputs the block adds to its sums."""
        first, second = (self.end_norm1 or self.attention, self.end_norm2 or self.feed_forward)
        return first or self.linears["o_proj"], second or self.linears["w2"]

    def starts(self, pre_norm: bool) -> tuple[str, str]:
        """Paths of layers whose inputs are x and h. `q_proj` is none in DeBERTa, which projects positions with it."""
        return (self.norm1, self.norm2) if pre_norm and self.norm1 else (self.linears["v_proj"], self.linears["w1"])

    @property
    def places(self) -> dict[str, str]:
        """Name -> path inside a block, of every place for LoRA."""
        return {**self.linears, **self.experts}

    @property
    def accepted(self) -> dict[str, str]:
        """Name that a user may give -> name of a place: its own, its other names, and its path inside a block or the
        last part of that, if no other place has it.
        """
        ends = Counter(path.rpartition(".")[2] for path in self.linears.values())
        names = {path: name for name, path in self.linears.items()}
        names |= {end: name for path, name in names.items() if ends[end := path.rpartition(".")[2]] == 1}
        names |= {given: name for name, path in self.experts.items() for given in (name, path)}
        return names | {given: name for name in self.linears for given in (name, *PROJECTIONS.get(name, ()))}

    def check(self, config: Any) -> None:
        """Raise `UserError` unless the table fits the model of this Hugging Face configuration."""
        found = config.model_type
        if found not in self.model_types:
            reason = f" ({self.misfits[found]})" if found in self.misfits else ""
            raise UserError(
                f"the family '{self.name}' does not fit a model of type '{found}'{reason}",
                f"this family needs a model of type {' or '.join(map(repr, self.model_types))}",
            )

    def check_task(self, task: Task) -> None:
        """Raise `UserError` unless models of this family can do `task`."""
        check_task(task, self.name, self.tasks)
