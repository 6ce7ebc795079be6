"""Turn the scores of `imp-test` into a configuration: which elements are on, and with which rank.

  --policy topk          the best elements on, each at --rank
  --policy proportional  ranks in proportion to the scores, from --min-rank to --max-rank
  --policy greedy        rank by rank in order of the ranks' own scores, which spectral and activation give

Give one budget: a share of the search space (topk: of its elements; else: of its total rank with every element at its
highest rank), a total rank, or a number of trainable parameters. It is spent in order of score, then on the addition
with the best score that still fits, and never exceeded. --budget-time, a share of the time of a training step, turns
on the elements with the largest sum of scores within it; imp-test has measured the step.
--seed decides between equal scores.
alpha is adapted to the rank so that the scaling (alpha / r) is the same as when the elements were scored. Elements with
rsLoRA keep their alpha, so that the scaling is alpha / sqrt(r).

  --format toml          a configuration for --lora-config
  --format peft          the arguments of peft.LoraConfig as JSON
  --format axolotl, llamafactory, trl
                         the keys of that trainer's YAML file; a note says what it cannot express

Instead of scores, give the folder of a finished run to write what that run chose. It needs no budget.

examples:
  python tools/realloc_lora_rank.py scores.toml --turn-on-percentile 0.25 --rank 8 --output lora.toml
  python tools/realloc_lora_rank.py scores.toml --policy proportional --parameters 300000 --max-rank 32 \\
      --output lora.toml --shortcut-output shortcut.toml
  python tools/realloc_lora_rank.py scores.toml --total-rank 256 --mode off --format peft --output lora.json
      then, anywhere: peft.LoraConfig(**json.load(open("lora.json")))
  python tools/realloc_lora_rank.py runs/NAME --format axolotl --output lora.yaml
"""

from __future__ import annotations

import argparse
import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.cli import Parser, add_overwrite, check_output, real, run, whole_number

from rich.table import Table

from actions.run.console import note, say
from actions.run.run_folder import ADAPTER, LORA, SCORES
from heterolora.choosing import scores as scores_file
from heterolora.choosing.allocation import MODES, default_mode, tie_generator
from heterolora.choosing.ranks import Assignment, Budget, Greedy, Policy, Proportional, TopK, Unit, assign
from heterolora.choosing.scores import Scores
from heterolora.choosing.words import degenerate, with_cost
from heterolora.common.errors import UserError
from heterolora.common.files import write_text
from heterolora.elements.config import ElementConfig
from heterolora.elements.element import Element, Kind, Place, at_ranks, check_no_experts, check_ranks
from heterolora.elements.peft_config import peft_config, peft_notes
from heterolora.elements.task import TASKS
from options.declare import flag_of
from options.ranges import at_least, seed_range, share
from tools.reallocation.blocks import BLOCKS, targets
from tools.reallocation.choice import Choice, choice_of_run

_MARK = "(tools/realloc_lora_rank.py from "  # in the first line of its TOML files

TITLES: Mapping[Kind, str] = {"lora": "LoRA", "shortcut": "shortcuts"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the scores, spend the budget, write the files. Raises UserError before it writes anything."""
    args = _parser().parse_args(arguments)
    is_run = args.source.is_dir() and not (args.source / SCORES).is_file()
    choice, tables = _of_run(args) if is_run else _of_scores(args)
    outputs = _outputs(args, choice)
    for path, text in outputs.items():
        check_output(path, [args.source], functools.partial(_is_ours, text), args.overwrite)
    say(choice.origin)
    for table in (*tables, result_table(choice.elements, choice.on), rank_table(choice.elements, choice.on)):
        say(table)
    say(with_cost(choice.elements, choice.on, choice.step_time))
    if (warning := degenerate(choice.elements, {element.key for element in choice.on})) is not None:
        note(warning)
    for path, text in outputs.items():
        write_text(path, text)
        say(f"wrote {path}")


def _of_scores(args: argparse.Namespace) -> tuple[Choice, tuple[Table, ...]]:
    """Spend the budget on the scores."""
    path = args.source / SCORES if args.source.is_dir() else args.source
    scores = scores_file.read(path)
    elements = [item.element for item in scores.scored]
    if args.load:
        check_model(scores, args.load)
    mode = args.mode or default_mode(scores.has_shortcuts)
    seed = scores.seed if args.seed is None else args.seed
    assignment = assign(scores.scored, _policy(args, elements), _limit(args, scores), mode, tie_generator(seed, 0))
    on = at_ranks(elements, assignment.ranks)
    check_ranks(on)
    if args.shortcut_output and not scores.has_shortcuts:
        raise UserError(f"{path} scores no shortcuts", "leave out --shortcut-output")
    origin = f"{args.policy or 'topk'} by {scores.importance_test_name} of {scores.model} on {scores.dataset}"
    choice = Choice(elements, on, scores.task, origin, scores.load or None, scores.renormalize, scores.step_time)
    if choice.of_kind("shortcut") and not args.shortcut_output:
        if mode != "off":
            raise UserError(
                "shortcuts are on and would be written nowhere",
                "give --shortcut-output FILE, or --mode off to spend the budget on LoRA alone",
            )
        note("the shortcuts stay as they were scored; --shortcut-output FILE writes their configuration")
    return choice, (budget_table(assignment),)


def _limit(args: argparse.Namespace, scores: Scores) -> Budget:
    amounts: dict[Unit, float | None] = {
        "share": args.turn_on_percentile,
        "rank": args.total_rank,
        "parameters": args.parameters,
        "time": args.budget_time,
    }
    given = [Budget(unit, amount, scores.step_time) for unit, amount in amounts.items() if amount is not None]
    if not given:
        raise UserError(
            "one of the arguments --turn-on-percentile --total-rank --parameters/--budget-parameters --budget-time is "
            "required",
            "give a budget, or the folder of a finished run",
        )
    if given[0].unit == "time" and scores.step_time is None:
        raise UserError(f"{args.source} has no [step_time]", "score again with imp-test --imp-step-time true")
    return given[0]


def _of_run(args: argparse.Namespace) -> tuple[Choice, tuple[Table, ...]]:
    """What a run chose. Its configurations are in its folder already."""
    for name, value in vars(args).items():
        if name not in ("source", "output", "format", "overwrite") and value is not None:
            raise UserError(f"{flag_of(name)} has no effect on a run, which has chosen", "leave it out")
    if args.format == "toml":
        raise UserError(f"{args.source} is a run", f"use its {args.source / LORA}, or give another --format")
    if not (args.source / ADAPTER).is_dir():
        raise UserError(f"{args.source} has no {SCORES} and no {ADAPTER}/", "give a scores file, or a finished run")
    return choice_of_run(args.source), ()


def _parser() -> Parser:
    parser, count = Parser(__doc__), whole_number(at_least(1))
    parser.add_argument("source", type=Path, metavar="SCORES", help="a scores file of imp-test, or a run's folder")
    parser.add_argument("--policy", choices=("topk", "proportional", "greedy"), help="default: topk")

    add = parser.add_argument_group("budget (one of them)").add_mutually_exclusive_group().add_argument
    add("--turn-on-percentile", type=real(share), metavar="P", help="a share in (0, 1] of the search space")
    add("--total-rank", type=count, metavar="N", help="the sum of all ranks")
    parameters = "the elements' trainable parameters, r · (in + out)"
    add("--parameters", "--budget-parameters", type=count, metavar="N", help=parameters)
    time = "a share in (0, 1] of the time of a training step with all elements on (topk only)"
    add("--budget-time", type=real(share), metavar="P", help=time)

    add = parser.add_argument_group("ranks").add_argument
    rank = "topk: rank of every element (default: its rank when it was scored)"
    add("--rank", type=count, metavar="R", help=rank)
    lowest = "proportional: lowest rank of an element that is on (default: 0, no bound)"
    add("--min-rank", type=whole_number(at_least(0)), metavar="R", help=lowest)
    add(
        "--max-rank",
        type=count,
        metavar="R",
        help="proportional: highest rank (default: the highest in the scores file)",
    )
    modes = (
        "off: LoRA only, shortcuts as they were scored; separated: a budget for each kind; combined: one budget for "
        "both (default: combined if shortcuts were scored, else off)"
    )
    add("--mode", "--dyrealloc-ags-mode", choices=MODES, help=modes)
    seed = "decides between equal scores (default: the seed of the scores file)"
    add("--seed", type=whole_number(seed_range), metavar="N", help=seed)

    add = parser.add_argument_group("output").add_argument
    add("--output", type=Path, required=True, metavar="FILE", help="the LoRA configuration")
    add("--shortcut-output", type=Path, metavar="FILE", help="the shortcut configuration, if any is on")
    add("--format", choices=("toml", "peft", *BLOCKS), default="toml", help="of --output (default: toml)")
    add_overwrite(parser)
    add("--load", metavar="MODEL", help="hub name or folder: check that the scores are of this model")
    return parser


def _policy(args: argparse.Namespace, elements: Sequence[Element]) -> Policy:
    if args.policy == "greedy":
        if {args.rank, args.min_rank, args.max_rank} != {None}:
            expected = "leave them out: the highest rank is that at which an element was scored"
            raise UserError("--rank, --min-rank and --max-rank have no effect on greedy", expected)
        return Greedy()
    if args.policy in (None, "topk"):
        if args.min_rank is not None or args.max_rank is not None:
            raise UserError("--min-rank and --max-rank have no effect on topk", "use --rank, or --policy proportional")
        return TopK(args.rank)
    if args.rank is not None:
        raise UserError("--rank has no effect on proportional", "use --max-rank and --min-rank, or --policy topk")
    highest = max(element.rank for element in elements) if args.max_rank is None else args.max_rank
    return Proportional(args.min_rank or 0, highest)


def _outputs(args: argparse.Namespace, choice: Choice) -> dict[Path, str]:
    """Path → text of the files to write. Prints what they leave out, and raises UserError if that is a mistake."""
    if args.shortcut_output and os.path.realpath(args.output) == os.path.realpath(args.shortcut_output):
        raise UserError("--output and --shortcut-output name the same file", "expected two")
    comment = f"# {choice.origin} {_MARK}{args.source.name})\n"  # the model card quotes it
    outputs = {args.output: comment + ElementConfig.of(choice.on, "lora").to_toml()}
    if args.format != "toml":
        if choice.of_kind("shortcut"):
            note("PEFT has no shortcuts: the file leaves them out")
        lora = choice.of_kind("lora")
        if not lora:
            raise UserError(
                "no LoRA element is on, and PEFT takes no empty configuration",
                "expected a choice with LoRA, such as one of a larger budget",
            )
        if args.format != "peft":
            check_no_experts(lora, f"--format {args.format} cannot name", "use --format peft")
        modules = [element.module for element in choice.elements if element.kind == "lora"]
        network, two_parts = _modules_of(choice), _has_two_parts(choice)
        peft_type = TASKS[choice.task].peft_type_of(two_parts)
        if two_parts and args.format != "peft":
            found = f"--format {args.format} is for decoders, and the choice is for an encoder-decoder"
            raise UserError(found, "use --format peft")
        if args.format == "peft":
            notes = peft_notes(lora)
            values = peft_config(lora, peft_type, choice.base, modules=modules)
            values["target_modules"] = targets(values, network)
            outputs[args.output] = json.dumps(values, indent=2) + "\n"
        else:
            block = BLOCKS[args.format](lora, peft_type, choice.base, modules, network)
            notes = block.notes
            outputs[args.output] = comment + block.to_yaml()
        for text in notes:
            note(text)
    if args.shortcut_output:
        outputs[args.shortcut_output] = comment + ElementConfig.of(choice.on, "shortcut", choice.renormalize).to_toml()
    return outputs


def _modules_of(choice: Choice) -> list[str]:
    """The paths of all modules of the base; empty if its configuration is not there."""
    from model.base_config import read_config
    from model.skeleton import skeleton

    if choice.base is None:
        return []
    try:
        return [path for path, _ in skeleton(read_config(choice.base), choice.task).named_modules()]
    except UserError:
        return []


def _has_two_parts(choice: Choice) -> bool:
    """Whether the scored elements are in an encoder and in a decoder. The base itself may not be there."""
    parts = {part for element in choice.elements for part in element.module.split(".")}
    return {"encoder", "decoder"} <= parts


def _is_ours(text: str, path: Path) -> bool:
    """Whether this tool wrote the file at `path`, which `text` will replace."""
    try:
        found = path.read_text(encoding="utf-8")
        if _MARK in text.partition("\n")[0]:
            return _MARK in found.partition("\n")[0]
        return list(json.loads(found)) == list(json.loads(text))
    except (OSError, ValueError, TypeError):
        return False


def check_model(scores: Scores, source: str) -> None:
    """Raise UserError unless the model `source` has every scored module with its widths. Reads no weights."""
    from heterolora.elements.blocks import outside_of
    from heterolora.elements.experts import shape_of
    from heterolora.elements.found import stacked_weights
    from heterolora.elements.linear import is_linear, widths_of
    from model.base_config import read_config
    from model.skeleton import skeleton

    network = skeleton(read_config(source), scores.task)
    modules = dict(network.named_modules())
    widths = {path: (1, *widths_of(module)) for path, module in modules.items() if is_linear(module)}
    widths |= {path: (1, *widths_of(modules[path])) for path in outside_of(network).values()}
    widths |= {name: shape_of(network, name) for name in stacked_weights(network)}
    for element in (item.element for item in scores.scored):
        own = (element.experts, element.in_features, element.out_features)
        fits = element.module in modules if element.kind == "shortcut" else widths.get(element.module) == own
        if not fits:
            raise UserError(
                f"'{source}' has no {element.module} that is {element.in_features} to {element.out_features} wide",
                f"expected the model that was scored, {scores.load or scores.model}",
            )


def budget_table(assignment: Assignment) -> Table:
    """The budget, and how much of it is spent."""
    table = Table("budget", "counts", "whole space", "budget", "spent")
    for part in assignment.spending:
        table.add_row(part.title, part.unit, f"{part.size:,}", f"{part.budget:,}", f"{part.spent:,}")
    return table


def result_table(elements: Sequence[Element], on: Sequence[Element]) -> Table:
    """Elements that are on, their ranks and parameters, by kind."""
    table = Table("result", "on", "of", "total rank", "parameters")
    for kind, title in TITLES.items():
        whole, chosen = ([element for element in some if element.kind == kind] for some in (elements, on))
        if whole:
            sums = (sum(element.rank for element in chosen), sum(element.parameters for element in chosen))
            table.add_row(title, *(f"{number:,}" for number in (len(chosen), len(whole), *sums)))
    return table


def rank_table(elements: Sequence[Element], on: Sequence[Element]) -> Table:
    """Blocks × names: the rank, `·` if the element is off, empty if there is none."""
    names = list(dict.fromkeys(element.name for element in elements))
    texts = {(element.layer, element.name): "·" for element in elements}
    texts |= {(element.layer, element.name): str(element.rank) for element in on}
    table = Table("rank", *names)
    for layer in sorted({element.layer for element in elements}):
        table.add_row(Place(layer, "").block, *(texts.get((layer, name), "") for name in names))
    return table


if __name__ == "__main__":
    run(main)
