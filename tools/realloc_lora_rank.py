"""Turn the scores of `imp-test` into a configuration: which elements are on, and with which rank.

  --policy topk          the best elements on, each at --rank
  --policy proportional  ranks in proportion to the scores, from --min-rank to --max-rank

Give one budget: a share of the search space (topk: of its elements; proportional: of its total rank with every element
at --max-rank), a total rank, or a number of trainable parameters. It is spent in order of score, then on the addition
with the best score that still fits, and never exceeded. --seed decides between equal scores.
alpha is adapted to the rank so that the scaling (alpha / r) is the same as when the elements were scored.

examples:
  python tools/realloc_lora_rank.py scores.toml --turn-on-percentile 0.25 --rank 8 --output lora.toml
  python tools/realloc_lora_rank.py scores.toml --policy proportional --parameters 300000 --max-rank 32 \\
      --output lora.toml --shortcut-output shortcut.toml
  python tools/realloc_lora_rank.py scores.toml --total-rank 256 --mode off --format peft --output lora.json
      then, anywhere: peft.LoraConfig(**json.load(open("lora.json")))
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tools.cli import Parser, run

from rich.table import Table

from actions.console import note, say
from heterolora import scores as scores_file
from heterolora.allocation import MODES, default_mode, of_kind, tie_generator
from heterolora.config import ElementConfig
from heterolora.element import Element, Kind
from heterolora.errors import UserError
from heterolora.files import write_text
from heterolora.peft_config import peft_config, peft_notes, task_type
from heterolora.ranks import Assignment, Limit, Policy, Proportional, TopK, assign
from heterolora.scores import Scores

TITLES: Mapping[Kind, str] = {"lora": "LoRA", "shortcut": "shortcuts"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the scores, spend the budget, write the files. Raises UserError before it writes anything."""
    args = _parser().parse_args(arguments)
    scores = scores_file.read(args.scores)
    if args.load:
        check_model(scores, args.load)
    mode = args.mode or default_mode(scores.has_shortcuts)
    seed = scores.seed if args.seed is None else args.seed
    assignment = assign(scores.scored, _policy(args, scores), _limit(args), mode, tie_generator(seed, 0))

    outputs = _outputs(args, scores, assignment, mode == "off")
    say(f"{scores.importance_test_name} of {scores.model}: policy {args.policy}, mode {mode}, seed {seed}")
    for table in (budget_table(assignment), result_table(scores, assignment), rank_table(scores, assignment)):
        say(table)
    for path, text in outputs.items():
        write_text(path, text)
        say(f"wrote {path}")


def _parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("scores", type=Path, metavar="SCORES.toml", help="a scores file of imp-test")
    parser.add_argument("--policy", choices=("topk", "proportional"), default="topk", help="default: topk")

    budget = parser.add_argument_group("budget (one of them)").add_mutually_exclusive_group(required=True)
    budget.add_argument("--turn-on-percentile", type=float, metavar="P", help="a share in (0, 1] of the search space")
    budget.add_argument("--total-rank", type=int, metavar="N", help="the sum of all ranks")
    budget.add_argument(
        "--parameters", type=int, metavar="N", help="the elements' trainable parameters, r · (in + out)"
    )

    ranks = parser.add_argument_group("ranks")
    ranks.add_argument(
        "--rank", type=int, metavar="R", help="topk: rank of every element (default: its rank when it was scored)"
    )
    ranks.add_argument(
        "--min-rank",
        type=int,
        metavar="R",
        help="proportional: lowest rank of an element that is on (default: 0, no bound)",
    )
    ranks.add_argument(
        "--max-rank", type=int, metavar="R", help="proportional: highest rank (default: the highest in the scores file)"
    )
    ranks.add_argument(
        "--mode",
        "--dyrealloc-ags-mode",
        choices=MODES,
        help="off: LoRA only, shortcuts as they were scored; separated: a budget for each kind; combined: one budget "
        "for both (default: combined if shortcuts were scored, else off)",
    )
    ranks.add_argument(
        "--seed", type=int, metavar="N", help="decides between equal scores (default: the seed of the scores file)"
    )

    output = parser.add_argument_group("output")
    output.add_argument("--output", type=Path, required=True, metavar="FILE", help="the LoRA configuration")
    output.add_argument("--shortcut-output", type=Path, metavar="FILE", help="the shortcut configuration, if any is on")
    output.add_argument("--format", choices=("toml", "peft"), default="toml", help="of --output (default: toml)")
    output.add_argument("--load", metavar="MODEL", help="hub name or folder: check that the scores are of this model")
    return parser


def _policy(args: argparse.Namespace, scores: Scores) -> Policy:
    if args.policy == "topk":
        if args.min_rank is not None or args.max_rank is not None:
            raise UserError("--min-rank and --max-rank have no effect on topk", "use --rank, or --policy proportional")
        return TopK(args.rank)
    if args.rank is not None:
        raise UserError("--rank has no effect on proportional", "use --max-rank and --min-rank, or --policy topk")
    highest = max(item.element.rank for item in scores.scored) if args.max_rank is None else args.max_rank
    return Proportional(args.min_rank or 0, highest)


def _limit(args: argparse.Namespace) -> Limit:
    if args.turn_on_percentile is not None:
        return Limit("share", args.turn_on_percentile)
    if args.total_rank is not None:
        return Limit("rank", args.total_rank)
    return Limit("parameters", args.parameters)


def _outputs(
    args: argparse.Namespace, scores: Scores, assignment: Assignment, shortcuts_left_alone: bool
) -> dict[Path, str]:
    """Path → text of the files to write. Prints what they leave out; raises UserError if that was chosen."""
    chosen = chosen_elements(scores, assignment.ranks)
    shortcuts_on = any(element.kind == "shortcut" for element in chosen)
    if args.shortcut_output and not scores.has_shortcuts:
        raise UserError(f"{args.scores} scores no shortcuts", "leave out --shortcut-output")
    if args.output == args.shortcut_output:
        raise UserError("--output and --shortcut-output name the same file", "expected two")
    if shortcuts_on and not args.shortcut_output:
        if not shortcuts_left_alone:
            raise UserError(
                "shortcuts are on and would be written nowhere",
                "give --shortcut-output FILE, or --mode off to spend the budget on LoRA alone",
            )
        note("the shortcuts stay as they were scored; --shortcut-output FILE writes them down")
    if args.format == "peft":
        if shortcuts_on:
            note("PEFT knows no shortcuts: they are not in its file")
        lora_elements = [element for element in chosen if element.kind == "lora"]
        if not lora_elements:
            raise UserError("no LoRA element is on, and PEFT takes no empty configuration", "give a larger budget")
        for text in peft_notes(lora_elements):
            note(text)
        lora = json.dumps(peft_config(lora_elements, task_type(scores.task), scores.load or None), indent=2) + "\n"
    else:
        lora = _toml(args, scores, ElementConfig.of(chosen, "lora"))
    outputs = {args.output: lora}
    if args.shortcut_output:
        outputs[args.shortcut_output] = _toml(args, scores, ElementConfig.of(chosen, "shortcut", scores.renormalize))
    return outputs


def _toml(args: argparse.Namespace, scores: Scores, config: ElementConfig) -> str:
    """The configuration with a comment that the model card quotes."""
    said = f"{args.policy} by {scores.importance_test_name} of {scores.model} on {scores.dataset}"
    return f"# {said} (tools/realloc_lora_rank.py from {args.scores.name})\n{config.to_toml()}"


def chosen_elements(scores: Scores, ranks: Mapping[str, int]) -> tuple[Element, ...]:
    """The elements that are on, with their ranks, and with the same scaling as when they were scored."""
    on = (item.element for item in scores.scored if item.element.key in ranks)
    return tuple(replace(element, settings=element.settings.at(ranks[element.key])) for element in on)


def check_model(scores: Scores, source: str) -> None:
    """Raises UserError unless the model `source` has every scored module with its widths. Reads no weights."""
    from transformers import AutoConfig

    from model.skeleton import skeleton

    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError):
        raise UserError(
            f"--load '{source}' is no model", "expected a hub name or a folder with a config.json"
        ) from None
    modules = dict(skeleton(config, scores.task).named_modules())
    for element in (item.element for item in scores.scored):
        module = modules.get(element.module)
        found = module and (getattr(module, "in_features", None), getattr(module, "out_features", None))
        if found is None or (element.kind == "lora" and found != (element.in_features, element.out_features)):
            raise UserError(
                f"'{source}' has no {element.module} that is {element.in_features} to {element.out_features} wide",
                f"expected the model that was scored, {scores.load or scores.model}",
            )


def budget_table(assignment: Assignment) -> Table:
    """The budget, and how much of it is spent."""
    table = Table("budget", "counts", "whole space", "budget", "spent")
    for part in assignment.spending:
        table.add_row(part.title, part.unit, f"{part.whole:,}", f"{part.budget:,}", f"{part.spent:,}")
    return table


def result_table(scores: Scores, assignment: Assignment) -> Table:
    """Elements that are on, their ranks and parameters, by kind."""
    table = Table("result", "on", "of", "total rank", "parameters")
    for kind, title in TITLES.items():
        elements = [item.element for item in of_kind(scores.scored, kind)]
        if elements:
            ranks = [assignment.ranks.get(element.key, 0) for element in elements]
            parameters = sum(
                rank * (element.in_features + element.out_features)
                for rank, element in zip(ranks, elements, strict=True)
            )
            on = sum(rank > 0 for rank in ranks)
            table.add_row(title, f"{on:,}", f"{len(elements):,}", f"{sum(ranks):,}", f"{parameters:,}")
    return table


def rank_table(scores: Scores, assignment: Assignment) -> Table:
    """Blocks × names: the rank, `·` if the element is off, empty if there is none."""
    elements = [item.element for item in scores.scored]
    names = list(dict.fromkeys(element.name for element in elements))
    table = Table("rank", *names)
    scored = {(element.layer, element.name): element.key for element in elements}
    for layer in sorted({element.layer for element in elements}):
        keys = [scored.get((layer, name)) for name in names]
        table.add_row(str(layer), *("" if key is None else str(assignment.ranks.get(key, "·")) for key in keys))
    return table


if __name__ == "__main__":
    run(main)
