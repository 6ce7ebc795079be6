"""Score a Transformers model, spend a parameter budget on the best layers, and train with PEFT and Trainer.

The model can be any causal language model of Transformers; by default it is the tiny OPT of this repository.

    pip install . peft transformers datasets accelerate
    python examples/finetune_with_trainer.py --model facebook/opt-125m --parameters 500000
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path

import peft
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

import heterolora as hl

TOY_OPT = Path(__file__).resolve().parents[1] / "model" / "toy_opt"
THINGS, STATES = ("tea", "soup", "coat", "lamp", "boat", "stone"), ("hot", "cold", "big", "small", "bright", "dark")


def rows(tokenizer: PreTrainedTokenizerBase) -> list[dict[str, list[int]]]:
    """Replace this function by your own data: token ids of each row."""
    texts = [f"The {a} was {b}. The {c} was {d}." for a, b, c, d in itertools.product(THINGS, STATES, THINGS, STATES)]
    return [{"input_ids": tokenizer(text).input_ids} for text in texts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(TOY_OPT), help="hub name or folder (default: the tiny OPT)")
    parser.add_argument("--heuristic", default="grad_norm", choices=hl.heuristics())
    parser.add_argument("--parameters", type=int, default=4000, help="budget of trainable parameters")
    parser.add_argument("--steps", type=int, default=20, help="training steps")
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(args.model, use_kernels=False)
    data, collate = rows(tokenizer), DataCollatorForLanguageModeling(tokenizer, mlm=False)

    # 1. Score LoRA on every linear layer with a few batches. The model is unchanged afterwards.
    batches = DataLoader(data[:64], batch_size=8, collate_fn=collate)
    scores = hl.score(model, batches, heuristic=args.heuristic)
    for module, score in itertools.islice(scores.by_module().items(), 5):
        print(f"{score:10.4f}  {module}")

    # 2. Turn the scores into a PEFT configuration with a rank for each layer.
    config = hl.lora_config(scores, parameters=args.parameters, task_type="CAUSAL_LM")

    # 3. Train as always.
    model = peft.get_peft_model(model, config)
    model.print_trainable_parameters()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=args.steps, learning_rate=2e-3, logging_steps=max(1, args.steps // 2), report_to="none"
        )
        Trainer(model, arguments, train_dataset=data, data_collator=collate).train()


if __name__ == "__main__":
    main()
