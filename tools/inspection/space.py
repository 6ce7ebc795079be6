"""The search space of a model: its elements and their sums, as tables and as values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import nn

from actions.command.request import Request
from actions.result.restore import restore_trained
from heterolora.common.checks import present
from heterolora.elements.adapt import in_head
from heterolora.elements.element import Kind
from heterolora.elements.experts import shape_of
from heterolora.elements.found import stacked_weights
from heterolora.elements.linear import is_linear, widths_of
from heterolora.elements.low_rank import LowRank
from heterolora.elements.search_space import SearchSpace
from model.parameters import count

_TRAINED = "this program adds the maps of all experts to their weights instead, once in each pass"
TITLES: Mapping[Kind, str] = {"lora": "LoRA", "shortcut": "shortcuts"}


@dataclass(frozen=True)
class Total:
    """The sums of one kind of element, or of the base, whose elements are its linear layers.

    Attributes:
        parameters: of all elements; of the whole base.
        multiply_adds: for a token, of the elements that are on.
    """

    elements: int
    on: int
    parameters: int
    parameters_on: int
    multiply_adds: int


@dataclass(frozen=True)
class SpaceReport:
    """What the tool shows of a network.

    Attributes:
        about: names of model and base, and --load.
    """

    network: nn.Module
    space: SearchSpace
    about: Mapping[str, str | None]
    notes: tuple[str, ...]

    def totals(self) -> dict[Kind, Total]:
        active = active_experts(self.network)
        return {kind: _total(self.space.of_kind(kind), active) for kind in TITLES if self.space.of_kind(kind)}

    def as_values(self) -> dict[str, Any]:
        named: dict[str, Any] = {kind: asdict(total) for kind, total in self.totals().items()}
        active = active_experts(self.network)
        elements = [_values(low_rank, active) for low_rank in self.space]
        named["base"] = asdict(_base(self.network, self.space))
        return {**self.about, "elements": elements, "totals": named}

    def shown(self) -> Iterator[Table]:
        yield _element_table(self.network, self.space)
        yield _total_table(self.totals(), _base(self.network, self.space))


def space_report(request: Request) -> SpaceReport:
    restored = restore_trained(request)
    about = {"model": request.options.model, "base": request.base.name, "load": request.options.load}
    space, active = present(restored.space), active_experts(restored.network)
    has_experts = active is not None and any(low_rank.element.experts > 1 for low_rank in space)
    of_experts = [f"multiply-adds count the {active} experts that act on a token; {_TRAINED}"] if has_experts else []
    notes = (*request.notes, *restored.notes, *of_experts)
    return SpaceReport(restored.network, space, about, notes)


def active_experts(network: nn.Module) -> int | None:
    """The number of experts of a layer that act on a token, if the configuration states it by its usual name."""
    config = network.config.get_text_config()  # type: ignore[union-attr, operator]
    return getattr(config, "num_experts_per_tok", None)


def _total(low_ranks: Sequence[LowRank], active: int | None) -> Total:
    on = [low_rank for low_rank in low_ranks if low_rank.enabled]
    parameters, parameters_on = (sum(each.element.parameters for each in some) for some in (low_ranks, on))
    return Total(len(low_ranks), len(on), parameters, parameters_on, sum(_multiply_adds(each, active) for each in on))


def _base(network: nn.Module, space: SearchSpace) -> Total:
    """Everything except elements and the classification head."""
    linears = [m for name, m in network.named_modules() if is_linear(m) and not in_head(name)]
    (parameters,) = (row.total for row in count(network, space).rows if row.kind == "base")
    shapes = [shape_of(network, name) for name in stacked_weights(network)]
    multiply_adds = sum(math.prod(widths_of(linear)) for linear in linears)
    multiply_adds += sum(_active(experts, active_experts(network)) * wide * out for experts, wide, out in shapes)
    return Total(len(linears), len(linears), parameters, parameters, multiply_adds)


def _multiply_adds(low_rank: LowRank, active: int | None) -> int:
    """Of an element that is on, for a token. Each parameter takes part in one, but of experts only those that act on
    the token, and of an embedding only B: a column of A is looked up.
    """
    element = low_rank.element
    if not low_rank.enabled:
        return 0
    if element.is_embedding:
        return element.rank * element.out_features
    return element.parameters // element.experts * _active(element.experts, active)


def _active(experts: int, active: int | None) -> int:
    return experts if active is None else min(experts, active)


def _values(low_rank: LowRank, active: int | None) -> dict[str, Any]:
    """The JSON object of an element."""
    element = low_rank.element
    return {
        "element": element.key,
        **{name: getattr(element, name) for name in ("kind", "module", "in_features", "out_features", "rank")},
        "alpha": element.settings.alpha,
        "scaling": low_rank.scaling,
        "parameters": element.parameters,
        "multiply_adds": _multiply_adds(low_rank, active),
        "on": low_rank.enabled,
    }


def _element_table(network: nn.Module, space: SearchSpace) -> Table:
    """A section for each block. Its first line is the path of the block; the other paths continue it."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("element", no_wrap=True)
    table.add_column("beside", overflow="fold", min_width=23)
    for name in ("in → out", "rank", "", "param-\neters", "multiply-\nadds"):
        table.add_column(name, no_wrap=True, justify="right")
    paths = {module: path for path, module in network.named_modules()}
    layer, active = None, active_experts(network)
    for low_rank in space:
        element = low_rank.element
        path = "" if element.is_outside else paths[space.blocks[element.layer]]
        if element.layer != layer:
            layer = element.layer
            table.add_section()
            table.add_row(element.table, path, style="bold")
        table.add_row(
            f" .{element.name}",
            " " + element.module.removeprefix(path),
            f"{element.in_features} → {element.out_features}",
            str(element.rank),
            "on" if low_rank.enabled else "off",
            f"{element.parameters:,}",
            f"{_multiply_adds(low_rank, active):,}",
        )
    return table


def _total_table(totals: Mapping[Kind, Total], base: Total) -> Table:
    table = Table("", "on", "of", "parameters on", "of base", "multiply-adds", "of base", box=SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    for kind, total in totals.items():
        parameters = (f"{total.parameters_on:,}", f"{total.parameters_on / base.parameters:.2%}")
        multiply_adds = (f"{total.multiply_adds:,}", f"{total.multiply_adds / base.multiply_adds:.2%}")
        table.add_row(TITLES[kind], f"{total.on:,}", f"{total.elements:,}", *parameters, *multiply_adds)
    table.add_row("base", "", "", f"{base.parameters:,}", "", f"{base.multiply_adds:,}", "")
    return table
