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

import importlib
from collections.abc import Sequence
from pathlib import Path

from tools.cli import Parser, run

from actions.command.parse import parse_command
from actions.request.origin import of_run
from actions.run.console import note, say
from actions.run.run_folder import CHECKPOINTS
from heterolora.common.errors import UserError
from heterolora.common.files import check_writable
from model.peft_format import is_adapter
from options.ranges import byte_size

FORMATS = ("peft", "vllm", "merged")  # each is a file of tools/exporting with `check` and `write`


def main(arguments: Sequence[str] | None = None) -> None:
    """Check, print what is lost, write. Raises UserError if the format cannot hold the result."""
    args, others = _parser().parse_known_args(arguments)

    from model.hub import check_publishing, publish

    if args.output.exists() and not (args.output.is_dir() and not any(args.output.iterdir())):
        raise UserError(f"--output {args.output} is there already", "give a folder that is empty or not there")
    if not byte_size.valid(args.max_shard_size):
        raise UserError(f"--max-shard-size '{args.max_shard_size}' is no size", f"give {byte_size.expected}")
    if args.push_to_hub is not None:
        check_publishing(args.push_to_hub)
    check_writable(args.output, "free space, or give --output on another disk")
    _check_result(args.result)
    command = of_run(parse_command(["test", "--load", str(args.result), *others]))
    for text in command.notes:
        note(text)

    from tools.exporting.export import Export, export

    export(Export.of(args, command), importlib.import_module(f"tools.exporting.{args.format}"))
    say(f"wrote {args.output}")
    if args.push_to_hub is not None:
        say(f"published as {publish(args.output, args.push_to_hub)}")


def _parser() -> Parser:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("result", type=Path, metavar="RESULT", help="folder of a run or an adapter, or a checkpoint")
    add("--format", choices=FORMATS, required=True)
    add("--output", type=Path, required=True, metavar="DIR", help="an empty or new folder")
    dropped = "leave out shortcuts, which no format supports, and print what that costs on validation data"
    add("--drop-shortcuts", action="store_true", help=dropped)
    add("--dequantize", action="store_true", help="merged: dequantise a quantised base")
    add("--max-shard-size", default="5GB", metavar="SIZE", help="merged: size of the largest file (default: 5GB)")
    add("--push-to-hub", metavar="NAME", help="also upload the folder to the Hugging Face hub, as this model")
    return parser


def _check_result(result: Path) -> None:
    """Raise UserError unless there is a file, an adapter or a run with checkpoints."""
    if not result.exists():
        raise UserError(f"{result} is not there", "give the folder of a run or an adapter, or a checkpoint")
    if not (result.is_file() or is_adapter(result) or (result / CHECKPOINTS).is_dir()):
        raise UserError(
            f"{result} has no checkpoints/best.ckpt", "give the folder of a run of train or train-dyrealloc"
        )


if __name__ == "__main__":
    run(main)
