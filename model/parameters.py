"""Counts the parameters and the trainable parameters of a network, for each kind of element."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from rich.table import Table
from torch import nn

from heterolora.elements.adapt import heads
from heterolora.elements.element import order_of
from heterolora.elements.low_rank import LowRank
from heterolora.elements.search_space import SearchSpace


@dataclass(frozen=True)
class ParameterRow:
    """One line of the table.

    Attributes:
        kind: `lora`, `shortcut`, `head` or `base`.
        name: canonical name of the element, or the kind for head and base.
        trainable: number of parameters that require a gradient; `total`: of all parameters.
        on: number of places with an element that is on; `off`: of all others.
        ranks: the distinct ranks, ascending.
    """

    kind: str
    name: str
    trainable: int
    total: int
    on: int = 0
    off: int = 0
    ranks: tuple[int, ...] = ()


@dataclass(frozen=True)
class ParameterTable:
    """The parameters of a network. Each is counted once."""

    rows: tuple[ParameterRow, ...]

    @property
    def trainable(self) -> int:
        return sum(row.trainable for row in self.rows)

    @property
    def total(self) -> int:
        return sum(row.total for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {"trainable": self.trainable, "total": self.total, "rows": [asdict(row) for row in self.rows]}


def count(network: nn.Module, space: SearchSpace | None = None) -> ParameterTable:
    """Count the parameters of a plain network, or of an adapted one with its search space."""
    sizes = partial(_sizes, _packed_weights(network))
    groups: dict[tuple[str, str], list[LowRank]] = {}
    for low_rank in space or ():
        groups.setdefault((low_rank.element.kind, low_rank.element.name), []).append(low_rank)
    of_name = Counter(place.name for place in (() if space is None else space.places()))
    rows = []
    for (kind, name), low_ranks in sorted(groups.items(), key=lambda group: order_of(group[0][1])):
        of_kind = sizes(p for low_rank in low_ranks for p in low_rank.parameters())
        on = sum(low_rank.enabled for low_rank in low_ranks)
        ranks = tuple(sorted({low_rank.element.rank for low_rank in low_ranks}))
        rows.append(ParameterRow(kind, name, *of_kind, on, of_name[name] - on, ranks))
    if of_head := [parameter for module in heads(network) for parameter in module.parameters()]:
        rows.append(ParameterRow("head", "head", *sizes(of_head)))
    trainable, total = sizes(network.parameters())
    rest = ParameterTable(tuple(rows))
    return ParameterTable((*rows, ParameterRow("base", "base", trainable - rest.trainable, total - rest.total)))


def _packed_weights(network: nn.Module) -> dict[nn.Parameter, int]:
    """Return the number of weights of each parameter of a 4-bit layer, which packs two weights into a byte."""
    layers: list[Any] = [module for module in network.modules() if getattr(module, "quant_state", None) is not None]
    return {layer.weight: layer.quant_state.shape.numel() for layer in layers}


def _sizes(packed: Mapping[nn.Parameter, int], parameters: Iterable[nn.Parameter]) -> tuple[int, int]:
    """Return (trainable, total)."""
    trainable = total = 0
    for parameter in parameters:
        size = packed.get(parameter, parameter.numel())
        total += size
        trainable += size if parameter.requires_grad else 0
    return trainable, total


def render(table: ParameterTable) -> Table:
    """Return the table for the terminal."""
    shown = Table(title="Parameters")
    for column in ("kind", "name", "elements on", "rank", "trainable", "total"):
        shown.add_column(column, justify="left" if column in ("kind", "name") else "right")
    for row in table.rows:
        elements = f"{row.on} of {row.on + row.off}" if row.ranks else ""
        ranks = ", ".join(map(str, row.ranks))
        shown.add_row(row.kind, row.name, elements, ranks, f"{row.trainable:,}", f"{row.total:,}")
    share = 100 * table.trainable / table.total
    shown.add_section()
    shown.add_row("all", "", "", "", f"{table.trainable:,} ({share:.2f}%)", f"{table.total:,}")
    return shown
