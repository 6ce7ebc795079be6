"""An adapter for PEFT, and what the formats of adapters share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from actions.result.export import write_adapter_folder
from actions.result.restore import has_shortcuts, restore_trained
from actions.run.console import note, say
from heterolora.common.checks import present
from heterolora.common.errors import UserError
from heterolora.elements.element import check_no_experts, check_outside
from heterolora.elements.peft_config import peft_notes
from model.load import load_tokenizer
from model.peft_format.vllm import max_lora_rank
from tools.exporting.export import Export

COMPUTES = False


def check(export: Export) -> None:
    check_adapter(export)
    if export.request.adapter is not None and not has_shortcuts(export.request):
        raise UserError(f"{export.args.result} is a PEFT adapter already", "use it as it is, or --format merged")


def write(export: Export, run_folder: Path | None) -> None:
    write_adapter(export, run_folder, for_vllm=False)


def check_adapter(export: Export) -> None:
    """Raise UserError if there is no adapter, or nobody else could use it."""
    args, base = export.args, export.request.base
    if export.request.adapted is None:
        raise UserError(f"{args.result} is a plain model, without LoRA", "use --format merged")
    own = base.state_file or (base.name if base.pretrained else f"{base.name} with random weights")
    if args.push_to_hub is not None and (own != base.name or Path(own).is_dir()):
        raise UserError(
            f"the base of {args.result} is {own}, which other people do not have",
            "give its hub name as --backbone-model, or use --format merged",
        )


def write_adapter(export: Export, run_folder: Path | None, for_vllm: bool) -> None:
    """Raise UserError if no element is on."""
    request = export.request
    restored = restore_trained(request)
    network, space = restored.network, present(restored.space)
    on = space.on("lora")
    if not on:
        raise UserError(f"{export.args.result} has no LoRA element that is on", "PEFT and vLLM take no empty adapter")
    if for_vllm:
        found = "--format vllm cannot hold LoRA on"  # vLLM has no common format for it
        check_no_experts([low_rank.element for low_rank in on], found, "use --format merged")
        check_outside([low_rank.element for low_rank in on], (), found, "use --format merged")
        say(f"start vLLM with --enable-lora --max-lora-rank {max_lora_rank(on)}")
    for text in () if for_vllm else peft_notes([low_rank.element for low_rank in on]):
        note(text)
    tokenizer = load_tokenizer(request.base.name, network.config)
    network.config.pad_token_id = tokenizer.pad_token_id
    record = replace(restored.record, base=request.base)
    written = (export.args.output, network, space, request.spec, tokenizer, record, run_folder)
    write_adapter_folder(*written, for_vllm=for_vllm)
