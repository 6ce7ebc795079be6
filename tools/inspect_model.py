"""Show the search space of a model: every element, its place, shape, rank and cost, and whether it is on.

Takes the options of `python -m main test`. It reads no weights of the base, so that it takes seconds for any size. With
a checkpoint or a PEFT adapter it shows which elements are on.

Multiply-adds (one product and one sum) are per token. For the base they are counted in linear layers only. An element
that is off has none.

With --plan it takes the options of `python -m main train`, and prints the memory and an estimate of the time of a
training step on 1, 2, 4, 8 … GPUs, with a replicated and with a sharded base (--strategy fsdp), with and without
--gradient-checkpointing. A training step runs on tensors without data to find it.

examples:
  python tools/inspect_model.py --model opt_lora_ags --load facebook/opt-350m
  python tools/inspect_model.py --model gemma_lora --load google/gemma-2b --lora-config configs/lora/lora_qv.toml
  python tools/inspect_model.py --load runs/NAME/checkpoints/best.ckpt --json
  python tools/inspect_model.py --model llama_lora --load meta-llama/Llama-2-7b-hf --dataset wikitext2 \\
      --precision bf16-true --batch-size 1 --plan --gpu-memory 24GB
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tools.cli import Parser, run

from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import nn

from actions.command.parse import parse_command
from actions.request.resolve import resolve
from actions.result.restore import restore_trained
from actions.run.console import note, say, set_log_level
from heterolora.common.errors import UserError
from heterolora.elements.adapt import in_head
from heterolora.elements.element import Kind
from heterolora.elements.low_rank import LowRank
from heterolora.elements.search_space import SearchSpace
from model.parameters import count
from options.ranges import byte_size, bytes_of
from tools.planning.cards import BY_DEFAULT, CARDS, Card, card_named
from tools.planning.report import Planned, as_values, explanation, gpu_table, planned, step_table

TITLES: Mapping[Kind, str] = {"lora": "LoRA", "shortcut": "shortcuts"}


class Total(NamedTuple):
    """The sums of one kind of element, or of the base, whose elements are its linear layers."""

    elements: int
    on: int
    parameters: int  # of all elements; of the whole base
    parameters_on: int
    multiply_adds: int  # of the elements that are on


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table or JSON. Raises UserError if an option is wrong or the model has no search space."""
    parser = Parser(__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--plan", action="store_true", help="print the memory and the time of a training step")
    parser.add_argument("--gpu-memory", metavar="SIZE", help="memory of a GPU, such as 24GB; by default that of --card")
    parser.add_argument("--card", metavar="NAME", help=f"GPU, for times: {', '.join(CARDS)} ({BY_DEFAULT})")
    args, others = parser.parse_known_args(arguments)
    card, memory = _gpu(args)
    request = resolve(parse_command(["train" if args.plan else "test", *others]))
    set_log_level(request.options.run.log_level)
    if request.adapted is None:
        raise UserError(
            f"'{request.options.model}' is a plain model, which has no search space",
            "give --model <family>_lora or <family>_lora_ags",
        )
    if args.plan:
        _print_plan(planned(request, card, memory), args.json)
        return
    restored = restore_trained(request)
    space = restored.space
    totals = {kind: _total(space.of_kind(kind)) for kind in TITLES if space.of_kind(kind)}
    base = _base(restored.network, space)
    if args.json:
        named = {kind: total._asdict() for kind, total in {**totals, "base": base}.items()}
        about = {"model": request.options.model, "base": request.base.name, "load": request.options.load}
        print(json.dumps({**about, "elements": [_values(each) for each in space], "totals": named}, indent=2))
        return
    for text in (*request.notes, *restored.notes):
        note(text)
    say(_element_table(restored.network, space))
    say(_total_table(totals, base))


def _gpu(args: argparse.Namespace) -> tuple[Card, int]:
    """The card, and the memory of a GPU in bytes."""
    for flag, value in (("--card", args.card), ("--gpu-memory", args.gpu_memory)):
        if value is not None and not args.plan:
            raise UserError(f"{flag} has no effect without --plan", "add --plan, or leave it out")
    card = card_named(args.card or BY_DEFAULT)
    if args.gpu_memory is None:
        return card, card.memory
    if (expected := byte_size(args.gpu_memory)) is not None:
        raise UserError(f"--gpu-memory '{args.gpu_memory}' is no size", f"give {expected}")
    return card, bytes_of(args.gpu_memory)


def _print_plan(found: Planned, as_json: bool) -> None:
    if as_json:
        print(json.dumps(as_values(found), indent=2))
        return
    for text in found.notes:
        note(text)
    say(found.title)
    for table in (step_table(found.plan), gpu_table(found.plan)):
        say("")
        say(table)
    say(f"\n{explanation(found.plan)}")


def _total(low_ranks: Sequence[LowRank]) -> Total:
    on = [low_rank for low_rank in low_ranks if low_rank.enabled]
    parameters = sum(low_rank.element.parameters for low_rank in low_ranks)
    parameters_on = sum(map(_multiply_adds, on))
    return Total(len(low_ranks), len(on), parameters, parameters_on, parameters_on)


def _base(network: nn.Module, space: SearchSpace) -> Total:
    """Everything except elements and the classification head."""
    linears = [m for name, m in network.named_modules() if isinstance(m, nn.Linear) and not in_head(name)]
    (parameters,) = (row.total for row in count(network, space).rows if row.kind == "base")
    multiply_adds = sum(linear.in_features * linear.out_features for linear in linears)
    return Total(len(linears), len(linears), parameters, parameters, multiply_adds)


def _multiply_adds(low_rank: LowRank) -> int:
    """Each parameter of an element that is on takes part in one multiply-add per token."""
    return low_rank.element.parameters if low_rank.enabled else 0


def _values(low_rank: LowRank) -> dict[str, Any]:
    """The JSON object of an element."""
    element = low_rank.element
    return {
        "element": element.key,
        "kind": element.kind,
        "module": element.module,
        "in_features": element.in_features,
        "out_features": element.out_features,
        "rank": element.rank,
        "alpha": element.settings.alpha,
        "scaling": low_rank.scaling,
        "parameters": element.parameters,
        "multiply_adds": _multiply_adds(low_rank),
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
    layer = None
    for low_rank in space:
        element = low_rank.element
        path = paths[space.blocks[element.layer]]
        if element.layer != layer:
            layer = element.layer
            table.add_section()
            table.add_row(f"layer_{layer}", path, style="bold")
        table.add_row(
            f" .{element.name}",
            " " + element.module.removeprefix(path),
            f"{element.in_features} → {element.out_features}",
            str(element.rank),
            "on" if low_rank.enabled else "off",
            f"{element.parameters:,}",
            f"{_multiply_adds(low_rank):,}",
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


if __name__ == "__main__":
    run(main)
