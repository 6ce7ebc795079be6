"""An adapter for PEFT."""

from __future__ import annotations

from pathlib import Path

from actions.result.restore import has_shortcuts
from heterolora.common.errors import UserError
from tools.exporting.adapter import check_adapter, write_adapter
from tools.exporting.export import Export

COMPUTES = False


def check(export: Export) -> None:
    check_adapter(export)
    if export.request.adapter is not None and not has_shortcuts(export.request):
        raise UserError(f"{export.args.result} is a PEFT adapter already", "use it as it is, or --format merged")


def write(export: Export, run_folder: Path | None) -> None:
    write_adapter(export, run_folder, for_vllm=False)
