"""`models`: list the families that have a table, and the places of each for LoRA and shortcuts."""

from __future__ import annotations

import json
from collections.abc import Sequence

from actions.command.parse import Parser
from actions.run.console import say
from heterolora.common.columns import in_columns
from heterolora.elements.element import SHORTCUTS
from heterolora.elements.family import Family
from model.family import PAGE, families
from options.actions import MODELS

_COLUMNS = ("--model", "model_type", "tasks", "places for LoRA")
_ABOUT = f"""
lora, the same as auto_lora, is LoRA on a base of any architecture. It takes the table that fits, and else finds the
places in the network. lora_ags and <family>_lora_ags add shortcuts: {", ".join(SHORTCUTS)}. Without a table they are
accepted if the blocks have a form that shortcuts know. See {PAGE}.""".strip()


def main(arguments: Sequence[str]) -> None:
    """Print a table, or JSON."""
    parser = Parser(prog=f"python -m main {MODELS}", description="List the families of models that have a table.")
    parser.add_argument("--json", action="store_true", help="print one JSON list instead of a table")
    args = parser.parse_args(arguments)
    tables = families().values()
    if args.json:
        print(json.dumps([_values(family) for family in tables], indent=2))
        return
    say(in_columns([_COLUMNS, *map(_row, tables)]))
    say(_ABOUT)


def _values(family: Family) -> dict[str, object]:
    return {
        "model": f"{family.name}_lora",
        "model_types": list(family.model_types),
        "tasks": list(family.tasks),
        "places": dict(family.linears),
        "shortcuts": list(SHORTCUTS),
    }


def _row(family: Family) -> tuple[str, ...]:
    tasks = "all" if len(family.tasks) > 1 else family.tasks[0]
    return f"{family.name}_lora", ", ".join(family.model_types), tasks, " ".join(family.linears)
