"""Supervised fine-tuning with TRL's SFTTrainer, with a callback that decides which LoRA layers are worth keeping.

pip install ".[peft]" trl
python examples/shrink_in_trl.py --model HuggingFaceTB/SmolLM2-135M --parameters 75000
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from heterolora.transformers import Reallocate

TOY_OPT = Path(__file__).resolve().parents[1] / "model" / "toy_opt"
THINGS, STATES = ("tea", "soup", "coat", "lamp", "boat"), ("hot", "cold", "big", "small", "bright")


def rows() -> Dataset:
    """Replace this function by your own data: prompts and completions."""
    pairs = itertools.product(THINGS, STATES)
    return Dataset.from_list([{"prompt": f"The {a} was", "completion": f" {b}."} for a, b in pairs])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(TOY_OPT), help="hub name or folder (default: the tiny OPT)")
    parser.add_argument("--parameters", type=int, default=1000, help="LoRA parameters that are left at the end")
    parser.add_argument("--steps", type=int, default=20, help="training steps")
    parser.add_argument("--output", default="shrunk", help="folder of the adapter")
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    arguments = SFTConfig(
        args.output,
        max_steps=args.steps,
        learning_rate=5e-3,
        logging_steps=5,
        save_strategy="no",
        report_to="none",
        bf16=torch.cuda.is_available(),
    )
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(args.model, use_kernels=False),
        arguments,
        train_dataset=rows(),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=1, lora_alpha=2, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[Reallocate(parameters=args.parameters)],
    )
    trainer.train()
    trainer.save_model(args.output)
    print(f"{len(trainer.model.peft_config['default'].target_modules)} layers are left in {args.output}")


if __name__ == "__main__":
    main()
