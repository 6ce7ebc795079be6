"""The output of the blocks below all elements that are on, computed once for each row and reused in later epochs.

With the lowest element that is on in block d, the input of block d depends on the row alone: embeddings and blocks
0 … d - 1 are frozen, and dropout is off in them. The hidden states of a row's tokens are kept, without padding. Padding
gets zeros: other tokens do not attend to it, and no loss depends on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from heterolora.common.checks import present
from heterolora.elements.blocks import base_of, replaced
from heterolora.elements.search_space import SearchSpace
from heterolora.saliency.problem import Batch
from model.task.row_cache import RowCache


class _Piece(NamedTuple):
    """The tokens of a row of the training set, in a batch: `length` tokens of a sequence, from `start` on."""

    row: int
    sequence: int
    start: int
    length: int

    @property
    def tokens(self) -> slice:
        return slice(self.start, self.start + self.length)


class FrozenPrefix:
    """Replaces the frozen blocks of a network by their kept output, during the forward pass of a training batch.

    Evaluation and scoring use the whole network. A probe of an element that is off needs the blocks from this element
    on, so only the blocks below it are replaced while it observes.

    Args:
        network: an adapted network.
        cache: the rows of this process.
        note: prints a line for the user.
    """

    def __init__(
        self, network: PreTrainedModel, space: SearchSpace, cache: RowCache, note: Callable[[str], None]
    ) -> None:
        self.space, self.cache, self.note, self.base = space, cache, note, base_of(network)
        self.family = present(space.family)
        path = self.family.blocks
        self.blocks = cast(nn.ModuleList, self.base.get_submodule(path))
        self._embeddings = [  # and the norms after the blocks, which have no dropout
            module
            for name, module in self.base.named_modules()
            if not path.startswith(name) and not name.startswith(f"{path}.")
        ]
        config = network.config.to_dict().items()
        self._has_dropout = any("dropout" in key and "classifier" not in key and value for key, value in config)
        self._frozen: int | None = None  # blocks without dropout
        self._said: set[str] = set()

    @contextmanager
    def reused(self, batch: Batch, inputs: dict[str, Tensor]) -> Iterator[None]:
        """Inside, the network takes the output of the frozen blocks from the cache.

        Args:
            batch: a training batch, with one sequence for each row, or with packs (`dataset.batching.packing`).
            inputs: the arguments of the network.
        """
        self._turn_dropout_off(self.space.frozen_blocks())
        depth = self.space.frozen_blocks(probed=True)
        if depth == 0:
            yield
            return
        with replaced(self.blocks, range(depth), self.family, self._output(batch, inputs, depth)):
            yield

    def _turn_dropout_off(self, frozen: int) -> None:
        if frozen == self._frozen:
            return
        self._frozen = frozen
        for layer, block in enumerate(self.blocks):
            block.train(layer >= frozen)
        for module in self._embeddings:
            module.train(frozen == 0)
        if frozen == 0:
            self._say_once("--cache-frozen-prefix saves no time while an element of the first block is on")
        elif self._has_dropout:
            self._say_once(
                "--cache-frozen-prefix turns dropout off in the embeddings and in the blocks below the lowest element "
                "that is on",
                f" (now the first {frozen} of {len(self.blocks)})",
            )

    def _say_once(self, what: str, now: str = "") -> None:
        if what not in self._said:
            self._said.add(what)
            self.note(what + now)

    def _output(self, batch: Batch, inputs: dict[str, Tensor], depth: int) -> Tensor:
        """The output of the first `depth` blocks (sequences, tokens, width).

        A sequence whose rows are all kept has zeros at its padding. Others are computed.
        """
        pieces, kept = _pieces(batch), self.cache.at(depth)
        new = [piece for piece in pieces if piece.row not in kept]
        missing = sorted({piece.sequence for piece in new})
        count, length = inputs["input_ids"].shape
        if missing:
            computed = self._computed({name: value[missing] for name, value in inputs.items()}, depth)
        if len(missing) == count:
            x = computed
        else:
            device = batch["index"].device
            example = next(kept[piece.row] for piece in pieces if piece.row in kept)
            x = torch.zeros((count, length, example.shape[-1]), dtype=example.dtype, pin_memory=device.type == "cuda")
            for piece in pieces:
                if piece.row in kept:
                    x[piece.sequence, piece.tokens] = kept[piece.row]
            x = x.to(device, non_blocking=True)
            if missing:
                x[missing] = computed
        if missing:
            outputs = dict(zip(missing, computed.cpu(), strict=True))  # one transfer for all rows
            for piece in new:
                self.cache.put(depth, piece.row, outputs[piece.sequence][piece.tokens])
        return x

    @torch.no_grad()
    def _computed(self, inputs: dict[str, Tensor], depth: int) -> Tensor:
        found: list[Tensor] = []

        def keep(_block: nn.Module, _args: Any, output: Any) -> None:
            found.append(output[0] if isinstance(output, tuple) else output)

        hook = self.blocks[depth - 1].register_forward_hook(keep)
        try:
            with replaced(self.blocks, range(depth, len(self.blocks)), self.family):
                self.base(**inputs)
        finally:
            hook.remove()
        return found[0]


def _pieces(batch: Batch) -> list[_Piece]:
    """Where the tokens of each row are. A row without packing is a sequence, with padding on the right."""
    if "pieces" in batch:
        return [_Piece(row, *place) for row, place in zip(batch["index"].tolist(), batch["pieces"], strict=True)]
    numbers = torch.stack([batch["index"], batch["attention_mask"].sum(1)])  # (2, rows)
    rows, lengths = numbers.tolist()  # one transfer from the device for both
    return [_Piece(row, place, 0, length) for place, (row, length) in enumerate(zip(rows, lengths, strict=True))]
