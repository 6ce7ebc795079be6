"""Show the search space of a model: every element, its place, shape, rank and cost, and whether it is on.

Takes the options of `python -m main test`. It reads no weights of the base, so that it takes seconds for any size. With
a checkpoint or a PEFT adapter it shows which elements are on.

Multiply-adds (one product and one sum) are per token. For the base they are counted in linear layers only. An element
that is off has none.

With --plan it takes the options of `python -m main train`, and prints on how many GPUs a training step fits, and its
memory and an estimate of its time on 1, 2, 4, 8 … GPUs, with a replicated and with a sharded base (--strategy fsdp),
with and without --gradient-checkpointing. With --gpu-memory alone there are no times. A training step runs on tensors
without data to find it.

examples:
  python tools/inspect_model.py --model lora_ags --load facebook/opt-350m
  python tools/inspect_model.py --model gemma_lora --load google/gemma-2b --lora-config configs/lora/lora_qv.toml
  python tools/inspect_model.py --load runs/NAME/checkpoints/best.ckpt --json
  python tools/inspect_model.py --model llama_lora --load meta-llama/Llama-2-7b-hf --dataset wikitext2 \\
      --precision bf16-true --batch-size 1 --plan --gpu-memory 24GB
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from tools.cli import Parser, run

from actions.command.parse import parse_command
from actions.request.elements import request_of
from actions.run.console import note, say, set_log_level
from heterolora.common.errors import UserError
from options.ranges import byte_size, bytes_of
from tools.planning.gpus import BY_DEFAULT, GPUS, Gpu, gpu_named


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table or JSON. Raises UserError if an option is wrong or the model has no search space."""
    parser = Parser(__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--plan", action="store_true", help="print the memory and the time of a training step")
    parser.add_argument("--gpu-memory", metavar="SIZE", help="memory of a GPU, such as 24GB; without --card, no times")
    parser.add_argument("--card", metavar="NAME", help=f"GPU, for memory and times: {', '.join(GPUS)} ({BY_DEFAULT})")
    args, others = parser.parse_known_args(arguments)
    gpu, memory = _gpu(args)
    request = request_of(parse_command(["train" if args.plan else "test", *others]))
    set_log_level(request.options.run.log_level)
    if request.adapted is None:
        raise UserError(
            f"'{request.options.model}' is a plain model, which has no search space",
            "give --model lora or lora_ags, and --load for the plain model",
        )

    from tools.inspection.space import SpaceReport, space_report
    from tools.planning.report import PlanReport, plan_report

    found: SpaceReport | PlanReport = plan_report(request, gpu, memory) if args.plan else space_report(request)
    if args.json:
        print(json.dumps(found.as_values(), indent=2))
        return
    for text in found.notes:
        note(text)
    for shown in found.shown():
        say(shown)


def _gpu(args: argparse.Namespace) -> tuple[Gpu | None, int]:
    """The GPU, and its memory in bytes. None if only the memory is given."""
    for flag, value in (("--card", args.card), ("--gpu-memory", args.gpu_memory)):
        if value is not None and not args.plan:
            raise UserError(f"{flag} has no effect without --plan", "add --plan, or leave it out")
    if args.gpu_memory is None:
        gpu = gpu_named(args.card or BY_DEFAULT)
        return gpu, gpu.memory
    if not byte_size.valid(args.gpu_memory):
        raise UserError(f"--gpu-memory '{args.gpu_memory}' is no size", f"give {byte_size.expected}")
    return None if args.card is None else gpu_named(args.card), bytes_of(args.gpu_memory)


if __name__ == "__main__":
    run(main)
