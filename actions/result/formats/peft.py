"""An adapter for PEFT."""

from __future__ import annotations

from dataclasses import replace

from actions.result.export import write_adapter_folder
from actions.result.formats.export import Export
from actions.result.restore import Restored, has_shortcuts, restore_trained
from actions.run.console import note
from heterolora.common.errors import UserError
from heterolora.elements.peft_config import peft_notes
from model.load import load_tokenizer


def check(export: Export) -> None:
    check_adapted(export)
    if export.request.adapter is not None and not has_shortcuts(export.request):
        raise UserError(f"{export.result} is a PEFT adapter already", "use it as it is, or --format merged")


def write(export: Export) -> None:
    restored = restored_adapter(export)
    for text in peft_notes([low_rank.element for low_rank in restored.space.on("lora")]):
        note(text)
    write_restored(export, restored)


def check_adapted(export: Export) -> None:
    if export.request.adapted is None:
        raise UserError(f"{export.result} is a plain model, without LoRA", "use --format merged")


def restored_adapter(export: Export) -> Restored:
    """The trained elements. Raises UserError if none is on."""
    restored = restore_trained(export.request)
    if not restored.space.on("lora"):
        raise UserError(f"{export.result} has no LoRA element that is on", "PEFT and vLLM take no empty adapter")
    return restored


def write_restored(export: Export, restored: Restored, for_vllm: bool = False) -> None:
    """Write the adapter with tokenizer and card. With `for_vllm`, LoRA is written as vLLM reads it."""
    request, network = export.request, restored.network
    tokenizer = load_tokenizer(request.base.name, network.config)
    network.config.pad_token_id = tokenizer.pad_token_id
    record = replace(restored.record, base=request.base)
    write_adapter_folder(
        export.output, network, restored.space, request.spec, tokenizer, record, export.run_folder, for_vllm=for_vllm
    )
