"""Train a classifier with Transformers' Trainer, and let a callback decide which of its LoRA layers are worth keeping.

Training begins with LoRA of rank 1 on every linear layer. The callback turns the weakest layers off until the budget is
reached, and the saved adapter holds the others only.

    pip install ".[peft]" datasets accelerate
    python examples/shrink_in_trainer.py --model FacebookAI/roberta-base --parameters 20000
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import peft
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from heterolora.transformers import Reallocate

TOY_OPT = Path(__file__).resolve().parents[1] / "model" / "toy_opt"
THINGS, GOOD, BAD = ("tea", "soup", "coat", "lamp"), ("hot", "big", "bright"), ("cold", "small", "dark")


def rows(tokenizer: PreTrainedTokenizerBase) -> list[dict[str, object]]:
    """Replace this function by your own data: token ids and label of each row."""
    texts = [(f"The {a} was {b}. The {c} was {b}.", b in GOOD) for a, c in itertools.product(THINGS, THINGS)
             for b in (*GOOD, *BAD)]  # fmt: skip
    return [{**tokenizer(text), "labels": int(label)} for text, label in texts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(TOY_OPT), help="hub name or folder (default: the tiny OPT)")
    parser.add_argument("--parameters", type=int, default=1000, help="LoRA parameters that are left at the end")
    parser.add_argument("--steps", type=int, default=40, help="training steps")
    parser.add_argument("--output", default="shrunk", help="folder of the adapter")
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    base = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=2, use_kernels=False)
    base.config.pad_token_id = tokenizer.pad_token_id
    config = peft.LoraConfig(r=1, lora_alpha=2, target_modules="all-linear", task_type="SEQ_CLS")
    model = peft.get_peft_model(base, config)

    arguments = TrainingArguments(
        args.output,
        max_steps=args.steps,
        learning_rate=5e-3,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        use_cpu=not torch.accelerator.is_available(),  # several processes on a CPU need it
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=rows(tokenizer),
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[Reallocate(parameters=args.parameters)],
    )
    trainer.train()
    trainer.save_model(args.output)
    print(f"{len(model.peft_config['default'].target_modules)} layers are left in {args.output}")


if __name__ == "__main__":
    main()
