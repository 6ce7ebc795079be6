"""Show the search space of a model: every element, its place, shape, rank and cost, and whether it is on.

Takes the options of `python -m main test`. It reads no weights of the base, so that it takes seconds for any size. With
a checkpoint or a PEFT adapter it shows which elements are on.

Multiply-adds (one product and one sum) are per token. For the base they are counted in linear layers only. An element
that is off has none.

examples:
  python tools/inspect_model.py --model opt_lora_ags --load facebook/opt-350m
  python tools/inspect_model.py --model gemma_lora --load google/gemma-2b --lora-config configs/lora/lora_qv.toml
  python tools/inspect_model.py --load runs/NAME/checkpoints/best.ckpt --json
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from tools.cli import Parser, run

from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import nn

from actions.console import note, say, set_log_level
from actions.parse import parse
from actions.resolve import resolve
from actions.restore import restore_trained
from heterolora.adapt import in_head
from heterolora.element import Kind
from heterolora.errors import UserError
from heterolora.low_rank import LowRank
from heterolora.search_space import SearchSpace
from model.parameters import count


@dataclass(frozen=True)
class Row:
    """One element.

    Attributes:
        element: its key, as in all files.
        kind: `lora` or `shortcut`.
        module: the module that it is added to.
        in_features: width of its input.
        out_features: width of its output.
        rank: r.
        alpha: as configured.
        scaling: the factor of its output.
        parameters: r · (in + out).
        multiply_adds: per token; 0 if it is off.
        on: whether it is on.
    """

    element: str
    kind: Kind
    module: str
    in_features: int
    out_features: int
    rank: int
    alpha: float
    scaling: float
    parameters: int
    multiply_adds: int
    on: bool


@dataclass(frozen=True)
class Total:
    """The sums of one kind of element, or of the base (whose elements are its linear layers, all on).

    Attributes:
        elements: number of elements.
        on: number of elements that are on.
        parameters: of all elements; of the whole base.
        parameters_on: of the elements that are on.
        multiply_adds: per token, of the elements that are on.
    """

    elements: int
    on: int
    parameters: int
    parameters_on: int
    multiply_adds: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table or JSON. Raises UserError if an option is wrong or the model has no search space."""
    parser = Parser(__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    args, others = parser.parse_known_args(arguments)
    request = resolve(parse(["test", *others]))
    set_log_level(request.options.run.log_level)
    if request.adapted is None:
        raise UserError(
            f"'{request.options.model}' is a plain model, which has no search space",
            "give --model <family>_lora or <family>_lora_ags",
        )
    restored = restore_trained(request)
    rows = [_row(low_rank) for low_rank in restored.space]
    base = _base(restored.network, restored.space)
    totals = {kind: _total(row for row in rows if row.kind == kind) for kind in dict.fromkeys(row.kind for row in rows)}
    if args.json:
        named = {kind: asdict(total) for kind, total in {**totals, "base": base}.items()}
        about = {"model": request.options.model, "base": request.base.name, "load": request.options.load}
        print(json.dumps({**about, "elements": [asdict(row) for row in rows], "totals": named}, indent=2))
        return
    for text in restored.notes:
        note(text)
    paths = {module: path for path, module in restored.network.named_modules()}
    say(_element_table(rows, [paths[block] for block in restored.space.blocks]))
    say(_total_table(totals, base))


def _row(low_rank: LowRank) -> Row:
    element = low_rank.element
    return Row(
        element=element.key,
        kind=element.kind,
        module=element.module,
        in_features=element.in_features,
        out_features=element.out_features,
        rank=element.rank,
        alpha=element.settings.alpha,
        scaling=low_rank.scaling,
        parameters=element.parameters,
        multiply_adds=element.parameters if low_rank.enabled else 0,
        on=low_rank.enabled,
    )


def _base(network: nn.Module, space: SearchSpace) -> Total:
    """Everything except elements and the classification head."""
    linears = [m for name, m in network.named_modules() if isinstance(m, nn.Linear) and not in_head(name)]
    (parameters,) = (row.total for row in count(network, space).rows if row.kind == "base")
    multiply_adds = sum(linear.in_features * linear.out_features for linear in linears)
    return Total(len(linears), len(linears), parameters, parameters, multiply_adds)


def _total(rows: Iterable[Row]) -> Total:
    rows = list(rows)
    on = [row for row in rows if row.on]
    return Total(
        elements=len(rows),
        on=len(on),
        parameters=sum(row.parameters for row in rows),
        parameters_on=sum(row.parameters for row in on),
        multiply_adds=sum(row.multiply_adds for row in on),
    )


def _element_table(rows: Sequence[Row], blocks: Sequence[str]) -> Table:
    """A section for each block. Its first line is the path of the block; the other paths continue it."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("element", no_wrap=True)
    table.add_column("beside", overflow="fold", min_width=23)
    for name in ("in → out", "rank", "", "param-\neters", "multiply-\nadds"):
        table.add_column(name, no_wrap=True, justify="right")
    for layer, path in enumerate(blocks):
        of_block = [row for row in rows if row.element.startswith(f"layer_{layer}.")]
        if not of_block:
            continue
        table.add_section()
        table.add_row(f"layer_{layer}", path, style="bold")
        for row in of_block:
            table.add_row(
                f" .{row.element.split('.')[1]}",
                " " + row.module.removeprefix(path),
                f"{row.in_features} → {row.out_features}",
                str(row.rank),
                "on" if row.on else "off",
                f"{row.parameters:,}",
                f"{row.multiply_adds:,}",
            )
    return table


def _total_table(totals: dict[Kind, Total], base: Total) -> Table:
    titles = {"lora": "LoRA", "shortcut": "shortcuts"}
    table = Table("", "on", "of", "parameters on", "of base", "multiply-adds", "of base", box=SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    for kind, total in totals.items():
        table.add_row(
            titles[kind],
            f"{total.on:,}",
            f"{total.elements:,}",
            f"{total.parameters_on:,}",
            f"{total.parameters_on / base.parameters:.2%}",
            f"{total.multiply_adds:,}",
            f"{total.multiply_adds / base.multiply_adds:.2%}",
        )
    table.add_row("base", "", "", f"{base.parameters:,}", "", f"{base.multiply_adds:,}", "")
    return table


if __name__ == "__main__":
    run(main)
