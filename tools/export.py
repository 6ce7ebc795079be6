"""Export a result for other tools: as an adapter for PEFT or vLLM, or merged into its base.

  --format peft    adapter_config.json and adapter_model.safetensors, for peft.PeftModel.from_pretrained
  --format vllm    the same files with one rank and one scaling, for vllm serve --enable-lora
  --format merged  a plain Hugging Face folder with tokenizer, for AutoModel….from_pretrained

RESULT is a run's folder (its best checkpoint), a checkpoint, or the folder of a PEFT adapter. Options of
`python -m main test` may follow, such as --backbone-model if the base has moved.

examples:
  python tools/export.py runs/NAME --format merged --output merged
  python tools/export.py runs/NAME/checkpoints/last.ckpt --format peft --output adapter --drop-shortcuts
  python tools/export.py runs/NAME --format vllm --output served --push-to-hub OWNER/NAME
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tools.cli import Parser, run

from actions.command.parse import parse_command
from actions.command.request import Request
from actions.request.origin import of_run
from actions.request.resolve import resolve
from actions.result.export import write_adapter_folder
from actions.result.merged import write_merged
from actions.result.restore import cost_of_dropping, has_shortcuts, restore_trained, without_shortcuts
from actions.run.console import note, say, set_log_level
from actions.run.run_folder import CHECKPOINTS, measured_checkpoint
from actions.training.trainer import check_devices
from heterolora.common.errors import UserError
from heterolora.common.files import check_writable
from heterolora.elements.peft_config import peft_notes, task_type
from model.hub import check_publishing, publish
from model.load import load_tokenizer
from model.peft_format import is_adapter
from model.peft_format.vllm import max_lora_rank
from options.ranges import byte_size, bytes_of


def main(arguments: Sequence[str] | None = None) -> None:
    """Check, print what is lost, write. Raises UserError if the format cannot hold the result."""
    args, others = _parser().parse_known_args(arguments)
    if args.output.exists() and not (args.output.is_dir() and not any(args.output.iterdir())):
        raise UserError(f"--output {args.output} is there already", "give a folder that is empty or not there")
    if (expected := byte_size(args.max_shard_size)) is not None:
        raise UserError(f"--max-shard-size '{args.max_shard_size}' is no size", f"give {expected}")
    if args.push_to_hub is not None:
        check_publishing(args.push_to_hub)
    check_writable(args.output, "free space, or give --output on another disk")
    _check_result(args.result)
    command = of_run(parse_command(["test", "--load", str(args.result), *others]))
    for text in command.notes:
        note(text)
    request = resolve(command)
    set_log_level(request.options.run.log_level)
    _check(args, request, dataset_given="dataset" in command.given)
    if args.format == "merged" or has_shortcuts(request):
        check_devices(request.options)
    run_folder = _measured(args.result, request)
    if has_shortcuts(request):
        say(cost_of_dropping(replace(request, notes=()), args.output.parent))
        request = without_shortcuts(request)
    if args.format != "merged":
        _write_adapter(args, request, run_folder)
    else:
        merged = write_merged(request, args.output, bytes_of(args.max_shard_size))
        say(
            f"the files' logits differ from the trained model's by {merged.error:.2g} at most; "
            f"the largest is {merged.largest:.2g} ({str(merged.dtype).removeprefix('torch.')}, {merged.files} files)"
        )
    say(f"wrote {args.output}")
    if args.push_to_hub is not None:
        say(f"published as {publish(args.output, args.push_to_hub)}")


def _parser() -> Parser:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("result", type=Path, metavar="RESULT", help="folder of a run or an adapter, or a checkpoint")
    add("--format", choices=("peft", "vllm", "merged"), required=True)
    add("--output", type=Path, required=True, metavar="DIR", help="an empty or new folder")
    dropped = "leave out shortcuts, which no format supports, and print what that costs on validation data"
    add("--drop-shortcuts", action="store_true", help=dropped)
    add("--dequantize", action="store_true", help="merged: dequantise a quantised base")
    add("--max-shard-size", default="5GB", metavar="SIZE", help="merged: size of the largest file (default: 5GB)")
    add("--push-to-hub", metavar="NAME", help="also upload the folder to the Hugging Face hub, as this model")
    return parser


def _measured(result: Path, request: Request) -> Path | None:
    """The folder of the run if its metrics are those of the exported weights, for the card."""
    same = request.checkpoint is not None and measured_checkpoint(result) == request.checkpoint.path.name
    return result if same and not has_shortcuts(request) else None


def _check_result(result: Path) -> None:
    """Raises UserError unless there is a file, an adapter or a run with checkpoints."""
    if not result.exists():
        raise UserError(f"{result} is not there", "give the folder of a run or an adapter, or a checkpoint")
    if not (result.is_file() or is_adapter(result) or (result / CHECKPOINTS).is_dir()):
        raise UserError(
            f"{result} has no checkpoints/best.ckpt", "give the folder of a run of train or train-dyrealloc"
        )


def _check(args: argparse.Namespace, request: Request, dataset_given: bool) -> None:
    """Raises UserError if the result cannot be exported. Needs no model."""
    adapter, spec = request.adapter, request.spec
    if request.checkpoint is None and adapter is None:
        raise UserError(f"{args.result} is neither a run nor a checkpoint nor an adapter", "expected one of them")
    if args.format != "merged" and request.adapted is None:
        raise UserError(f"{args.result} is a plain model, without LoRA", "use --format merged")
    if args.format == "peft" and adapter is not None and not has_shortcuts(request):
        raise UserError(f"{args.result} is a PEFT adapter already", "use it as it is, or --format merged")
    if args.format == "vllm" and spec.task == "classification":
        raise UserError(f"{args.result} has a trained head, and vLLM's adapters hold LoRA alone", "use --format merged")
    base = request.base
    own = base.state_file or (base.name if base.pretrained else f"{base.name} with random weights")
    if args.push_to_hub is not None and args.format != "merged" and (own != base.name or Path(own).is_dir()):
        raise UserError(
            f"the base of {args.result} is {own}, which other people do not have",
            "give its hub name as --backbone-model, or use --format merged",
        )
    if has_shortcuts(request) and not args.drop_shortcuts:
        raise UserError(
            f"{args.result} has shortcuts that are on, or `renormalize`, and --format {args.format} cannot hold them",
            "leave them out with --drop-shortcuts, which shows what that costs",
        )
    if args.format == "merged" and request.options.quantize and not args.dequantize:
        raise UserError(
            f"the base of {args.result} is quantised ({request.options.quantize}): LoRA can't be folded into it",
            "give --dequantize, or --quantize none to fold into the unquantised base",
        )
    if adapter is not None and adapter.record is None and not dataset_given:
        # The data set gives the head and the names of the labels.
        raise UserError(f"{adapter.folder} does not say what it was trained on", "give --dataset")
    if adapter is not None and adapter.settings.task_type not in (None, task_type(spec.task)):
        raise UserError(
            f"{adapter.folder} is for {adapter.settings.task_type}, and {spec.name} for {spec.task}",
            "give a --dataset of the adapter's task",
        )


def _write_adapter(args: argparse.Namespace, request: Request, run_folder: Path | None) -> None:
    restored = restore_trained(request)
    network, on, for_vllm = restored.network, restored.space.on("lora"), args.format == "vllm"
    if not on:
        raise UserError(f"{args.result} has no LoRA element that is on", "PEFT and vLLM take no empty adapter")
    if for_vllm:
        say(f"start vLLM with --enable-lora --max-lora-rank {max_lora_rank(on)}")
    for text in () if for_vllm else peft_notes([low_rank.element for low_rank in on]):
        note(text)
    tokenizer = load_tokenizer(request.base.name, network.config)
    network.config.pad_token_id = tokenizer.pad_token_id
    record = replace(restored.record, base=request.base)
    write_adapter_folder(
        args.output, network, restored.space, request.spec, tokenizer, record, run_folder, for_vllm=for_vllm
    )


if __name__ == "__main__":
    run(main)
