"""Train sentence embeddings of a BERT with sentence-transformers. A callback decides which LoRA layers to keep.

pip install ".[peft]" sentence-transformers datasets accelerate
python examples/shrink_in_sentence_transformers.py --model sentence-transformers/all-MiniLM-L6-v2 --parameters 4000
"""

from __future__ import annotations

import argparse
import itertools

from datasets import Dataset
from peft import LoraConfig, get_peft_model
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.losses import MultipleNegativesRankingLoss

from heterolora.transformers import Reallocate

THINGS, STATES = ("tea", "soup", "coat", "lamp", "boat"), ("hot", "cold", "big", "small", "bright")


def rows() -> Dataset:
    """Replace this function by your own data: pairs of similar texts."""
    pairs = itertools.product(THINGS, STATES)
    return Dataset.from_list([{"anchor": f"The {a} was {b}.", "positive": f"A {b} {a}."} for a, b in pairs])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="hub name or folder")
    parser.add_argument("--parameters", type=int, default=4000, help="LoRA parameters that are left at the end")
    parser.add_argument("--steps", type=int, default=20, help="training steps")
    parser.add_argument("--output", default="shrunk", help="folder of the adapter")
    args = parser.parse_args()

    model = SentenceTransformer(args.model, model_kwargs={"use_kernels": False})
    config = LoraConfig(r=1, lora_alpha=2, target_modules=r".*encoder\.layer.*\.(query|key|value|dense)")
    adapted = get_peft_model(model[0].auto_model, config)
    model[0].auto_model = adapted
    arguments = SentenceTransformerTrainingArguments(
        args.output, max_steps=args.steps, learning_rate=2e-3, logging_steps=5, save_strategy="no", report_to="none"
    )
    SentenceTransformerTrainer(
        model,
        arguments,
        train_dataset=rows(),
        loss=MultipleNegativesRankingLoss(model),
        callbacks=[Reallocate(parameters=args.parameters)],
    ).train()
    adapted.save_pretrained(args.output)


if __name__ == "__main__":
    main()
