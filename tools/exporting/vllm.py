"""An adapter for vLLM, which takes one rank and one scaling for all modules, and no head."""

from __future__ import annotations

from pathlib import Path

from heterolora.common.errors import UserError
from tools.exporting.export import Export
from tools.exporting.peft import check_adapter, write_adapter

COMPUTES = False


def check(export: Export) -> None:
    check_adapter(export)
    if export.request.spec.classifies:
        found = f"{export.args.result} has a trained head, and vLLM's adapters hold LoRA alone"
        raise UserError(found, "use --format merged")


def write(export: Export, run_folder: Path | None) -> None:
    write_adapter(export, run_folder, for_vllm=True)
