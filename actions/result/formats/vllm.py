"""An adapter for vLLM, which has one rank and one scaling."""

from __future__ import annotations

from actions.result.formats.export import Export
from actions.result.formats.peft import check_adapted, restored_adapter, write_restored
from actions.run.console import say
from heterolora.common.errors import UserError
from model.peft_format.vllm import max_lora_rank


def check(export: Export) -> None:
    check_adapted(export)
    if export.request.spec.task == "classification":
        found = f"{export.result} has a trained head, and vLLM's adapters hold LoRA alone"
        raise UserError(found, "use --format merged")


def write(export: Export) -> None:
    restored = restored_adapter(export)
    say(f"start vLLM with --enable-lora --max-lora-rank {max_lora_rank(restored.space.on('lora'))}")
    write_restored(export, restored, for_vllm=True)
