"""Configurations and a pretrained network -> an adapted network and its search space."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from heterolora.common.errors import UserError
from heterolora.elements.blocks import blocks_of, has_place, outside_of
from heterolora.elements.config import ElementConfig
from heterolora.elements.element import OUTSIDE, SHORTCUTS, Element, Place, Settings
from heterolora.elements.embedding import LoraEmbedding
from heterolora.elements.experts import LoraExperts, shape_of
from heterolora.elements.family import Family
from heterolora.elements.linear import widths_of
from heterolora.elements.low_rank import LoraLinear, LowRank
from heterolora.elements.search_space import SearchSpace
from heterolora.elements.shortcut import Carry, Shortcuts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Hugging Face's names of a classification head. `lm_head` is not one: it is tied to the embedding.
_HEADS = ("score", "classifier")
#: Names of its parts beside the base model, in some architectures.
_PARTS = ("pre_classifier", "pooler", "head", "dense", "classification_head", "sequence_summary", "logits_proj")
HEADS = (*_HEADS, *_PARTS)
NO_DROPOUT_OF_IDS = "the dropout of LoRA has no effect on the token embedding, whose inputs are no vectors"
NO_DROPOUT = "the dropout of LoRA has no effect on experts: a low-rank map is added to their weights, not their outputs"


@dataclass(frozen=True)
class Placement:
    """The elements that a network gets from its configurations.

    Two configurations are equivalent for a model exactly when their plans are equal.

    Attributes:
        elements: by block and, within a block, LoRA in table order, then shortcuts.
        renormalize: whether the blocks normalise once more after the cross-layer shortcuts.
        notes: remarks for the user, one line each.
    """

    family: Family
    elements: tuple[Element, ...]
    renormalize: bool = False
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def shortcuts(self) -> bool:
        """Whether the blocks need the shortcuts' hooks."""
        return self.renormalize or any(element.kind == "shortcut" for element in self.elements)

    def same_elements(self, other: Placement) -> bool:
        """Whether both make a model that computes the same: equal places, ranks and scalings. Dropout may differ."""
        mine, others = (
            {element.key: element.settings for element in placement.elements} for placement in (self, other)
        )
        return (
            self.renormalize == other.renormalize
            and mine.keys() == others.keys()
            and all(mine[key].rank == others[key].rank for key in mine)
            and all(math.isclose(mine[key].scaling, others[key].scaling) for key in mine)
        )


def placement_of(
    network: PreTrainedModel, family: Family, lora: ElementConfig | None, shortcut: ElementConfig | None = None
) -> Placement:
    """Decide which elements a Hugging Face model gets, before any weight is loaded (it may be on the meta device).

    Raises UserError if the family does not fit the model, or a configuration names a block that it does not have.
    """
    family.check(network.config)
    blocks, outside = blocks_of(network, family), outside_of(network)
    path_of = {module: path for path, module in network.named_modules()}
    names = {"lora": tuple(family.places), "shortcut": SHORTCUTS}
    configs = [config for config in (lora, shortcut) if config is not None]
    notes = [
        note for config in configs for note in _notes(config, family, len(blocks), (*names[config.kind], *outside))
    ]
    places = [(config, name) for config in configs for name in names[config.kind]]
    elements: list[Element] = []
    for layer, block in enumerate(blocks):
        for config, name in places:
            settings = config.lookup(layer, name, by_default=name not in family.experts)
            if settings is None or not has_place(block, family, name):
                continue
            path = path_of[block]
            if config.kind == "shortcut":
                widths = (network.config.hidden_size,) * 2
                elements.append(Element(layer, name, "shortcut", path, *widths, settings))
            elif name in family.experts:
                elements.append(on_experts(network, (layer, name), f"{path}.{family.experts[name]}", settings))
                notes += [NO_DROPOUT] if settings.dropout else []
            else:
                module = block.get_submodule(family.linears[name])
                elements.append(Element(layer, name, "lora", path_of[module], *widths_of(module), settings))
    for name, path in outside.items():
        settings = None if lora is None else lora.lookup(OUTSIDE[name], name)
        if settings is not None:
            widths = widths_of(network.get_submodule(path))
            element = Element(OUTSIDE[name], name, "lora", path, *widths, settings)
            elements.append(
                replace(element, settings=replace(settings, dropout=0.0)) if element.is_embedding else element
            )
            notes += [NO_DROPOUT_OF_IDS] if element.is_embedding and settings.dropout else []
    elements.sort(key=lambda element: element.layer)  # stable
    planned = Placement(
        family, tuple(elements), shortcut is not None and shortcut.renormalize, tuple(dict.fromkeys(notes))
    )
    if planned.shortcuts:
        _check_shortcuts(planned, network.config)
    return planned


def _check_shortcuts(planned: Placement, hf_config: Any) -> None:
    family = planned.family
    check_blocks(hf_config, "shortcuts do", "layerdrop", "chunk_size_feed_forward")
    if family.parallel(hf_config):
        raise UserError(
            f"both halves of a block of this {family.name} model have the same input, so shortcuts are not defined",
            "give --model lora",
        )
    if planned.renormalize and not family.norm1:
        raise UserError(
            f"shortcut configuration: renormalize is true, but {family.name} has no norm of its sums",
            "expected renormalize = false",
        )


def on_experts(network: nn.Module, place: tuple[int, str], parameter: str, settings: Settings) -> Element:
    """The element on a parameter with the weights of all experts. It has no dropout: its input is not known."""
    experts, wide, out = shape_of(network, parameter)
    return Element(*place, "lora", parameter, wide, out, replace(settings, dropout=0.0), experts)


def _notes(config: ElementConfig, family: Family, layers: int, names: Sequence[str]) -> Iterator[str]:
    yield from config.notes
    for site in config.sites:
        layer, name = (None, site) if isinstance(site, str) else site
        if layer is not None and layer >= layers and not Place(layer, name).is_outside:
            raise UserError(
                f"{config.kind} configuration: [model_layer_{layer}.{name}] is beyond the model",
                f"it has {layers} blocks, 0 to {layers - 1}",
            )
        if name not in names:
            yield f"{config.kind} configuration: {name} is ignored: {family.name} has none"


def check_blocks(hf_config: Any, what: str, *keys: str) -> None:
    """Raise UserError if a key of the model's configuration says that some blocks do not run, or run in parts, which
    `what` (with "do" or "does") needs.
    """
    for key in keys:
        if value := getattr(hf_config, key, 0):
            raise UserError(
                f"{what} not work with {key} = {value} in the model's configuration",
                "expected 0: every block must run, over the whole sequence at once",
            )


def adapt(network: PreTrainedModel, planned: Placement) -> SearchSpace:
    """Add the planned elements to a pretrained network, in place. The network computes what it did before, since B = 0.

    The base, of any floating dtype or quantised, is frozen. Linear layers are wrapped, shortcuts are attached to their
    blocks, and a classification head is made float32. Only the elements, which are all on, and the head are trained.
    """
    family = planned.family
    pre_norm = family.pre_norm(network.config)
    blocks = tuple(blocks_of(network, family))
    carry = Carry()
    low_ranks = train_only(network, planned.elements)
    if planned.shortcuts:
        for layer, block in enumerate(blocks):
            inside = {each.element.name: each for each in low_ranks if each.element.layer == layer}
            Shortcuts(layer, inside, carry, planned.renormalize).attach(block, family, pre_norm)
    return SearchSpace(low_ranks, blocks, family, pre_norm, carry)


def train_only(network: nn.Module, elements: Sequence[Element]) -> tuple[LowRank, ...]:
    """Freeze a network, add elements to it as `wrap` does, and train these and a classification head, in float32."""
    network.requires_grad_(False)
    low_ranks = wrap(network, elements)
    for head in heads(network):
        if any(True for _ in head.parameters()):
            head.to(torch.float32).requires_grad_(True)
            head.register_forward_pre_hook(_cast_input)
    return low_ranks


def wrap(network: nn.Module, elements: Sequence[Element]) -> tuple[LowRank, ...]:
    """Make a low-rank map for each element, and wrap the linear layers and experts of those that are LoRA."""
    low_ranks = []
    for element in elements:
        module = network.get_submodule(element.host)
        low_ranks.append(LowRank(element).to(_device(module, network)))
        if element.experts > 1:
            experts = module if isinstance(module, LoraExperts) else LoraExperts(module)
            experts.add(element.module.rpartition(".")[2], low_ranks[-1])
            network.set_submodule(element.host, experts)
        elif element.is_embedding:
            network.set_submodule(element.module, LoraEmbedding(module, low_ranks[-1]))
        elif element.kind == "lora":
            network.set_submodule(element.module, LoraLinear(module, low_ranks[-1]))
    return tuple(low_ranks)


def heads(network: nn.Module) -> Iterator[nn.Module]:
    """The parts of the classification head of a network, if it has one."""
    children = dict(network.named_children())
    beside_base = getattr(network, "base_model_prefix", None) in children
    has_output = beside_base and network.get_output_embeddings() is not None  # type: ignore[operator]
    names = HEADS if beside_base and not has_output else _HEADS
    return (module for name, module in children.items() if name in names)


def in_head(name: str) -> bool:
    """Whether a parameter name belongs to a classification head."""
    return name.split(".", 1)[0] in HEADS


def _device(module: nn.Module, network: nn.Module) -> torch.device:
    """The device of a module. A quantised module may have no tensors; then the device of the network."""
    tensors = itertools.chain(module.parameters(), module.buffers(), network.parameters())
    return next(tensor.device for tensor in tensors)


def _cast_input(head: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Pre-hook of a head on a base of another dtype. It is not bound to an object, so that deep copies keep it."""
    return (args[0].to(next(head.parameters()).dtype), *args[1:])
