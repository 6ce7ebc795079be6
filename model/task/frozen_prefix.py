"""The output of the blocks below all elements that are on, computed once for each row and reused in later epochs.

With the lowest element that is on in block d, the input of block d depends on the row alone: embeddings and blocks
0 … d - 1 are frozen, and dropout is off in them. The hidden states of a row's tokens are kept, without padding. Padding
gets zeros: other tokens do not attend to it, and no loss depends on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from heterolora.blocks import replaced
from heterolora.errors import UserError
from heterolora.search_space import SearchSpace
from model.task.row_cache import RowCache


def check_fixed_blocks(config: PretrainedConfig) -> None:
    """Raise UserError if the network leaves out blocks at random in training."""
    if drop := getattr(config, "layerdrop", 0):
        raise UserError(
            f"--cache-frozen-prefix does not work with layerdrop = {drop} in the model's configuration",
            "expected 0: every block must run",
        )


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
        self.space, self.cache, self.note, self.base = space, cache, note, network.base_model
        path = space.family.blocks
        self.blocks: nn.ModuleList = self.base.get_submodule(path)
        self._embeddings = [  # and the norms after the blocks, which have no dropout
            module
            for name, module in self.base.named_modules()
            if not path.startswith(name) and not name.startswith(f"{path}.")
        ]
        config = network.config.to_dict().items()
        self._has_dropout = any("dropout" in key and "classifier" not in key and value for key, value in config)
        self._frozen: int | None = None  # blocks without dropout

    @contextmanager
    def reused(self, index: Tensor, inputs: dict[str, Tensor]) -> Iterator[None]:
        """Inside, the network takes the output of the frozen blocks from the cache.

        Args:
            index: (rows,) the rows of the batch in the training set.
            inputs: the arguments of the network.
        """
        self._turn_dropout_off(self.space.frozen_blocks())
        depth = self.space.frozen_blocks(probed=True)
        if depth == 0:
            yield
            return
        with replaced(self.blocks, range(depth), _StandIn(self._output(index, inputs, depth))):
            yield

    def _turn_dropout_off(self, frozen: int) -> None:
        if frozen == self._frozen:
            return
        for layer, block in enumerate(self.blocks):
            block.train(layer >= frozen)
        for module in self._embeddings:
            module.train(frozen == 0)
        if self._frozen is None:
            self._say(frozen)
        self._frozen = frozen

    def _say(self, frozen: int) -> None:
        if frozen == 0:
            self.note("--cache-frozen-prefix saves no time while an element of the first block is on")
        elif self._has_dropout:
            self.note(
                "--cache-frozen-prefix turns dropout off in the embeddings and in the blocks below the lowest element "
                f"that is on (now the first {frozen} of {len(self.blocks)})"
            )

    def _output(self, index: Tensor, inputs: dict[str, Tensor], depth: int) -> Tensor:
        """The output of the first `depth` blocks (rows, tokens, width), zero at padding that was not computed now."""
        numbers = torch.stack([index, inputs["attention_mask"].sum(1)])  # padding is on the right
        rows, lengths = numbers.tolist()  # one transfer from the device for both
        kept = self.cache.at(depth)
        missing = [place for place, row in enumerate(rows) if row not in kept]
        computed = self._computed({name: value[missing] for name, value in inputs.items()}, depth) if missing else None
        if len(missing) == len(rows):
            x = computed
        else:
            example = next(kept[row] for row in rows if row in kept)
            shape = (*inputs["attention_mask"].shape, example.shape[-1])
            x = torch.zeros(shape, dtype=example.dtype, pin_memory=index.is_cuda)
            for place, row in enumerate(rows):
                if row in kept:
                    x[place, : lengths[place]] = kept[row]
            x = x.to(index.device, non_blocking=True)
            if missing:
                x[missing] = computed
        # One transfer for all rows, not one for each.
        for place, output in zip(missing, () if computed is None else computed.cpu(), strict=True):
            self.cache.put(depth, rows[place], output[: lengths[place]])
        return x

    @torch.no_grad()
    def _computed(self, inputs: dict[str, Tensor], depth: int) -> Tensor:
        found: list[Tensor] = []

        def keep(_block: nn.Module, _args: Any, output: Any) -> None:
            found.append(output[0] if isinstance(output, tuple) else output)

        hook = self.blocks[depth - 1].register_forward_hook(keep)
        try:
            with replaced(self.blocks, range(depth, len(self.blocks)), _StandIn()):
                self.base(**inputs)
        finally:
            hook.remove()
        return found[0]


class _StandIn(nn.Module):
    """Takes the place of blocks, and returns their output. Without `output` it returns its input."""

    def __init__(self, output: Tensor | None = None) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        return x if self.output is None else self.output
