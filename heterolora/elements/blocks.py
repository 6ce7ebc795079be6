"""The blocks of a network, and running it with some of them replaced, during one call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn

from heterolora.elements.family import Family
from heterolora.elements.linear import is_linear


def base_of(network: nn.Module) -> nn.Module:
    """A Transformers model without its head. `base_model` of Llama 4 is the whole network.

    That of T5 is the whole network too, which holds both parts: then the base is the network.
    """
    base, model = cast(nn.Module, network.base_model), cast(Any, network)
    if base is not network or model.config.is_encoder_decoder or model.get_output_embeddings() is None:
        return base
    return next((child for child in network.children() if hasattr(child, "config")), base)


def blocks_of(network: nn.Module, family: Family) -> nn.ModuleList:
    """The blocks of a Transformers model, in order."""
    base = base_of(network)
    lists = [cast(nn.ModuleList, base.get_submodule(path)) for path in (family.blocks, *family.more_blocks)]
    return lists[0] if len(lists) == 1 else nn.ModuleList(block for each in lists for block in each)


def has_place(block: nn.Module, family: Family, name: str) -> bool:
    """Whether a block has the place `name`. Only some blocks have the layers of experts, for example."""
    path = family.places.get(name)
    if path is None:
        return True
    owner, _, last = path.rpartition(".")
    try:
        return hasattr(block.get_submodule(owner), last)
    except AttributeError:
        return False


def outside_of(network: nn.Module) -> dict[str, str]:
    """Name -> path in a Transformers model, of what can get LoRA outside of the blocks: the token embedding, and the
    output layer. The embedding of an encoder-decoder is several modules.
    """
    model = cast(Any, network)
    path_of = {module: path for path, module in network.named_modules()}
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    found = {} if model.config.is_encoder_decoder else {"embed_tokens": embedding}
    found |= {"lm_head": output}
    fits = {name: module for name, module in found.items() if isinstance(module, nn.Embedding) or _fits(module)}
    return {name: path_of[module] for name, module in fits.items()}


def _fits(module: nn.Module | None) -> bool:
    return module is not None and is_linear(module)


def names_outside(network: nn.Module) -> dict[str, str]:
    """Name that a user may give -> name of a place outside of the blocks: its path, and the last part of that."""
    found = outside_of(network)
    given = {other: name for name, path in found.items() for other in (path, path.rpartition(".")[2])}
    return given | dict(zip(found, found, strict=True))


@contextmanager
def replaced(blocks: nn.ModuleList, layers: range, family: Family, output: Tensor | None = None) -> Iterator[None]:
    """Replace blocks in the network's list: each of `layers` returns `output`, or its input if that is None."""
    kept = [blocks[layer] for layer in layers]
    try:
        for layer, block in zip(layers, kept, strict=True):
            blocks[layer] = _StandIn(output, block, family.returns_tuple)
        yield
    finally:
        for layer, block in zip(layers, kept, strict=True):
            blocks[layer] = block


class _StandIn(nn.Module):
    """Takes the place of a block, whatever its other arguments are. Its other attributes are those of the block."""

    def __init__(self, output: Tensor | None, block: nn.Module, as_tuple: bool) -> None:
        super().__init__()
        self.output, self.as_tuple = output, as_tuple
        self._of = (block,)  # a tuple refers to a module without registering it

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__.get("_of", ())
        return getattr(own[0], name) if own else super().__getattr__(name)

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor | tuple[Tensor, None]:
        """x (rows, tokens, width) -> the output of the block, of the same shape."""
        y = x if self.output is None else self.output
        return (y, None) if self.as_tuple else y
