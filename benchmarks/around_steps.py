"""A whole run before its first and after its last optimizer step, against PEFT with Transformers' Trainer.

Each run is a process of its own, whose CPU time counts from its start to its end. Both train LoRA of the same rank on
the query and value projections, on the same rows, and measure the validation rows once at the end. This program also
writes checkpoints, tables and pictures, as it does by default.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.cli import whole_number

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from actions.run.console import say
from benchmarks import measure
from heterolora.common.errors import UserError
from options.ranges import at_least

OURS, PEFT = "ours", "PEFT and Trainer"
BEFORE, AFTER = "before the first step", "after the last step"
ROWS, MEASURED = 200, 40


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(rounds=5)
    parser.add_argument("--base", default="model/toy_opt", metavar="FOLDER", help="the base (default: %(default)s)")
    parser.add_argument("--model", default="opt_lora", metavar="NAME", help="its --model (default: %(default)s)")
    parser.add_argument(
        "--steps", type=whole_number(at_least(1)), default=3, metavar="N", help="optimizer steps (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> None:
    say(measure.heading(args, f"a run of {args.steps} steps of {args.model}"))
    found: dict[str, dict[str, list[float]]] = {part: {OURS: [], PEFT: []} for part in (BEFORE, AFTER)}
    with tempfile.TemporaryDirectory() as folder:
        for split, count in (("train", ROWS), ("validation", MEASURED)):
            rows = [{"text": f"{'good' if row % 2 else 'bad'} row {row}", "label": row % 2} for row in range(count)]
            Path(folder, f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        for turn in range(-1, args.rounds):  # the first one fills caches
            for name in (OURS, PEFT) if turn % 2 else (PEFT, OURS):
                parts = _parts(name, folder, args)
                for part, seconds in parts.items() if turn >= 0 else ():
                    found[part][name].append(seconds)
    for part, rounds in found.items():
        say(measure.Seconds(rounds).table(PEFT, part))


def _parts(name: str, folder: str, args: argparse.Namespace) -> dict[str, float]:
    """The CPU seconds of a run, in a process of its own. Raises UserError if it fails."""
    given = {"name": name, "folder": folder, "base": args.base, "model": args.model}
    given |= {"steps": args.steps, "rank": args.rank, "rows": args.rows}
    command = [sys.executable, "-m", "benchmarks.around_steps", json.dumps(given)]
    threads = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | threads)
    if done.returncode:
        raise UserError(f"the run of {name} failed: {done.stderr.strip()[-500:]}", "give a base that it can train")
    return json.loads(done.stdout.splitlines()[-1])


def _timed(train: Callable[[dict[str, Any]], None], given: dict[str, Any]) -> dict[str, float]:
    """CPU seconds of this process before its first and after its last optimizer step."""
    starts: list[float] = []
    ends: list[float] = []
    register_optimizer_step_pre_hook(lambda *_: starts.append(time.process_time()))
    register_optimizer_step_post_hook(lambda *_: ends.append(time.process_time()))
    train(given)
    return {BEFORE: starts[0], AFTER: time.process_time() - ends[-1]}


def _ours(given: dict[str, Any]) -> None:
    from main import main

    folder = given["folder"]
    options = [
        "--model",
        given["model"],
        "--load",
        given["base"],
        "--dataset",
        folder,
        "--project-dir",
        f"{folder}/runs",
    ]
    options += [
        "--text-columns",
        "text",
        "--label-column",
        "label",
        "--rank",
        str(given["rank"]),
        "--target",
        "query,value",
    ]
    options += ["--max-steps", str(given["steps"]), "--batch-size", str(given["rows"]), "--accelerator", "cpu"]
    if main(["train", *options], is_program=True):
        raise RuntimeError("train has failed")


def _peft(given: dict[str, Any]) -> None:
    from datasets import load_dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

    tokenizer = AutoTokenizer.from_pretrained(given["base"], trust_remote_code=False)
    files = {split: f"{given['folder']}/{split}.jsonl" for split in ("train", "validation")}
    rows = load_dataset("json", data_files=files).map(lambda row: tokenizer(row["text"]), remove_columns="text")
    network = AutoModelForSequenceClassification.from_pretrained(
        given["base"], num_labels=2, trust_remote_code=False, use_kernels=False
    )
    names = ["q_proj", "v_proj", "query", "value"]
    network = get_peft_model(network, LoraConfig("SEQ_CLS", r=given["rank"], target_modules=names))
    settings = TrainingArguments(
        f"{given['folder']}/peft",
        max_steps=given["steps"],
        per_device_train_batch_size=given["rows"],
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    )
    trainer = Trainer(
        network, settings, train_dataset=rows["train"], eval_dataset=rows["validation"], processing_class=tokenizer
    )
    trainer.train()
    trainer.evaluate()
    trainer.save_model()


if __name__ == "__main__":
    torch.set_num_threads(1)
    asked = json.loads(sys.argv[1])
    print(f"\n{json.dumps(_timed(_ours if asked['name'] == OURS else _peft, asked))}")
