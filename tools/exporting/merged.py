"""LoRA folded into its base, as a plain Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

from actions.result.merged import write_merged
from actions.run.console import say
from heterolora.common.errors import UserError
from options.ranges import bytes_of
from tools.exporting.export import Export

COMPUTES = True


def check(export: Export) -> None:
    quantize = export.request.options.quantize
    if quantize and not export.args.dequantize:
        raise UserError(
            f"the base of {export.args.result} is quantised ({quantize}): LoRA can't be folded into it",
            "give --dequantize, or --quantize none to fold into the unquantised base",
        )


def write(export: Export, run_folder: Path | None) -> None:
    merged = write_merged(export.request, export.args.output, bytes_of(export.args.max_shard_size))
    say(
        f"the files' logits differ from the trained model's by {merged.error:.2g} at most; the largest is "
        f"{merged.largest:.2g} ({str(merged.dtype).removeprefix('torch.')}, {merged.files} files)"
    )
    if merged.in_pipeline is not None:
        say(f"the scores of transformers' pipeline differ from those of predict by {merged.in_pipeline:.2g} at most")
